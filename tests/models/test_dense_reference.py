"""Similarities, losses and gradients are those of DenseAV's and the max-mean baseline's published code."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from models.dense import contrast, regularizers
from models.dense.regularizers import NegativeSimilarity
from models.dense.scale import Calibration, Temperature
from models.dense.similarity import (
    SimilarityConfig,
    clip_volumes,
    pair_volumes,
    reduce_pairs,
    similarities,
    split_heads,
)

FOLDER = Path(__file__).parents[1] / "reference"
#: Pairs in several blocks, the last ones smaller.
BLOCK = 3000


class Reference(NamedTuple):
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    expect: dict[str, Any]

    def close(self, name: str, value: Tensor) -> None:
        torch.testing.assert_close(value, self.tensors[f"expect.{name}"], atol=1e-4, rtol=0)


def load(name: str, variable: str) -> Reference:
    path = os.environ.get(variable, str(FOLDER / name))
    facts = json.loads(Path(f"{path}.json").read_text())
    return Reference(load_file(f"{path}.safetensors"), facts["config"], facts["expect"])


@pytest.fixture(scope="module")
def denseav() -> Reference:
    return load("denseav_a", "EARSIGHT_REFERENCE_DENSEAV")


@pytest.fixture(scope="module")
def max_mean() -> Reference:
    return load("max_mean_a", "EARSIGHT_REFERENCE_MAX_MEAN")


class Features:
    """DenseAV's input in our layout, its leaves with gradient."""

    def __init__(self, ref: Reference) -> None:
        config = ref.config
        self.leaf_audio = ref.tensors["input.audio_feats"].clone().requires_grad_()
        self.leaf_visual = ref.tensors["input.image_feats"].clone().requires_grad_()
        self.audio = split_heads(rearrange(self.leaf_audio, "b c t -> b t c"), config["heads"])
        self.visual = split_heads(rearrange(self.leaf_visual, "b c h w -> b (h w) c"), config["heads"])
        self.sound = ref.tensors["input.audio_mask"].float()
        self.weight = self.sound if config["mask_silence"] else torch.ones_like(self.sound)
        self.nonnegative = config["nonneg_sim"]

    def rule(self, **settings: Any) -> SimilarityConfig:
        return SimilarityConfig(nonnegative=self.nonnegative, **settings)

    def volume(self) -> Tensor:
        return self.rule().clamp(clip_volumes(self.audio, self.visual) * self.sound[:, None, None])


@pytest.mark.parametrize("heads", ["max_elementwise", "max", "sum"])
@pytest.mark.parametrize("rule", ["misa", "mima", "sisa", "paired"])
def test_denseav_similarities(denseav, rule, heads):
    features = Features(denseav)
    found = similarities(
        features.audio, features.visual, features.weight, features.rule(rule=rule, heads=heads), BLOCK
    )
    denseav.close(f"similarity.{rule}.{heads}", found.detach())


def test_denseav_similarity_of_each_head(denseav):
    features = Features(denseav)
    by_head = features.rule().by_head
    (found,) = reduce_pairs(features.audio, features.visual, features.weight, [by_head], BLOCK)
    denseav.close("similarity_by_head.misa", found.detach())


def test_denseav_volumes(denseav):
    features = Features(denseav)
    grid = (denseav.config["height"], denseav.config["width"])
    pair = pair_volumes(features.audio[:1], features.visual[1:2])[0, 0].detach()
    denseav.close("raw_volume_0_1", pair.unflatten(1, grid))
    paired = clip_volumes(features.audio, features.visual) * features.sound[:, None, None]
    denseav.close("paired_volume", paired.detach().unflatten(2, grid))


def denseav_terms(ref: Reference, features: Features, calibration: Calibration) -> dict[str, Tensor]:
    """Each regulariser of the peer before its weight, by the names of the reference, from the same draws."""
    given = {key.removeprefix("input."): value for key, value in ref.tensors.items()}
    volume, clamp = features.volume(), features.rule().clamp
    b, t = given["random_b"], given["random_t"]
    places = given["random_h"] * ref.config["width"] + given["random_w"]
    silent = (features.sound == 0).nonzero()[given["silent_permutation"][: ref.config["num_samples"]]]
    tokens = features.audio[silent[:, 0], :, silent[:, 1]], torch.ones(len(silent)), features.visual
    return {
        "nonneg": regularizers.nonnegativity(features.audio[b, :, t], features.visual[b, :, places]),
        "silence_l1": regularizers.silence(*tokens, lambda s: clamp(s).abs()),
        "silence_l2": regularizers.silence(*tokens, lambda s: clamp(s).square()),
        "neg_audio": regularizers.spliced_audio(volume, given["audio_pos_mask"], features.sound),
        "tv": regularizers.total_variation(volume),
        "cal_balance": calibration.penalty(),
        "disentangle": regularizers.disentangling(volume, given["source"]),
        "specialize": regularizers.specialization(volume),
        "image_mixup": regularizers.mixed_picture(volume, given["image_mask"].flatten(1)),
    }


#: Where the peer's setting of a weight is not named like its term.
WEIGHT_OF = {
    "nonneg": "nonneg_pressure",
    "tv": "tv_weight",
    "cal_balance": "cal_balance_weight",
    "disentangle": "disentangle_weight",
    "specialize": "specialization_weight",
    "image_mixup": "mixup_weight",
    "neg_audio": "neg_audio_weight",
}


def test_denseav_losses_and_gradients(denseav):
    features, expect = Features(denseav), denseav.expect
    calibration = Calibration(denseav.config["calibration_init"])
    with torch.no_grad():
        calibration.log_w.fill_(denseav.config["calibration_w"]).log_()
    logits = calibration(
        similarities(features.audio, features.visual, features.weight, features.rule(), BLOCK)
    )
    denseav.close("calibrated_similarity", logits.detach())
    terms = denseav_terms(denseav, features, calibration)
    total = contrast.nce(logits)
    assert total.item() == pytest.approx(expect["losses"]["nce"], rel=1e-5)
    # The peer leaves the silence terms out where too few tokens are silent; then the file has none.
    for name in expect["losses"].keys() & terms.keys():
        assert terms[name].item() == pytest.approx(expect["losses"][name], rel=1e-5), name
        total = total + denseav.config["weights"][WEIGHT_OF.get(name, name)] * terms[name]
    assert total.item() == pytest.approx(expect["losses"]["total"], rel=1e-5)
    found = [value.item() for value in contrast.accuracy(logits)]
    assert found == pytest.approx([expect["losses"]["acc/1"], expect["losses"]["acc/2"]])
    assert calibration.factor().item() == pytest.approx(expect["calibration_w"])

    total.backward()
    for leaf, name in ((features.leaf_audio, "audio_feats"), (features.leaf_visual, "image_feats")):
        assert leaf.grad is not None
        expected = denseav.tensors[f"expect.grad.{name}"]
        assert leaf.grad.norm().item() == pytest.approx(expected.norm().item(), rel=1e-3)
        torch.testing.assert_close(leaf.grad, expected, atol=1e-6, rtol=1e-4)
    assert calibration.log_w.grad is not None
    assert calibration.log_w.grad.item() == pytest.approx(expect["grad_calibration_log_w"], rel=1e-3)


def test_denseav_contrasts(denseav):
    logits = denseav.tensors["expect.calibrated_similarity"]
    assert denseav.expect["contrast"]
    for name, expected in denseav.expect["contrast"].items():
        kind, leak, margin = name.split(" ")
        leak, margin = (float(setting.split("=")[1]) for setting in (leak, margin))
        moved = contrast.with_margin(logits, margin)
        losses = {
            "nce": contrast.nce(moved, leak),
            "ce": contrast.nce(moved),
            "bce": contrast.binary_cross_entropy(moved, leak),
            "margin": contrast.hinge(moved),
        }
        assert losses[kind].item() == pytest.approx(expected, rel=1e-5), name


def test_max_mean(max_mean):
    config, expect = max_mean.config, max_mean.expect
    leaves = [
        max_mean.tensors[f"input.{name}_tokens"].clone().requires_grad_() for name in ("audio", "visual")
    ]
    rule = SimilarityConfig(normalize=config["normalised"])
    audio, visual = rule.prepare(split_heads(leaves[0], 1)), rule.prepare(split_heads(leaves[1], 1))
    scale = Temperature(config["temperature"], *config["temperature_range"])
    everywhere = torch.ones(audio.shape[0], audio.shape[2])
    reductions = [rule.reduce, NegativeSimilarity(scale.factor())]
    similarity, pressure = reduce_pairs(audio, visual, everywhere, reductions, 500)
    logits = scale(similarity)
    max_mean.close("similarity", logits.detach())
    max_mean.close("paired_similarity", logits.diagonal().detach())
    volume = clip_volumes(audio, visual)[:, 0].mT * scale.factor()
    max_mean.close("paired_token_similarity", volume.detach())

    regularisation = (
        config["weights"]["nonneg"] * pressure.mean() + config["weights"]["temperature"] * scale.penalty()
    )
    loss = contrast.nce(logits) + regularisation
    assert contrast.nce(logits).item() == pytest.approx(expect["contrast"], rel=1e-5)
    assert regularisation.item() == pytest.approx(expect["regularisation"], rel=1e-5)
    assert loss.item() == pytest.approx(expect["loss"], rel=1e-5)
    loss.backward()
    for leaf, name in zip(leaves, ("audio", "visual"), strict=True):
        torch.testing.assert_close(
            leaf.grad, max_mean.tensors[f"expect.grad.{name}_tokens"], atol=1e-6, rtol=1e-4
        )
    assert scale.value.grad is not None
    assert scale.value.grad.item() == pytest.approx(expect["grad_temperature"], rel=1e-3)
