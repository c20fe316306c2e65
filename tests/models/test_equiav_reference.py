"""EquiAV is the published one, number for number."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models import info_nce, nt_xent
from models.equiav.model import EquiAv, Projections
from models.equiav.published import infer_config, published_name, to_ours, to_published


class Reference(NamedTuple):
    model: EquiAv
    outputs: tuple[Projections, Projections]
    published: dict[str, Tensor]
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.facts["config"]


@pytest.fixture(scope="module")
def ref() -> Reference:
    default = Path(__file__).parents[1] / "reference" / "equiav_a"
    path = Path(os.environ.get("EARSIGHT_REFERENCE_EQUIAV", default))
    tensors, facts = load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())
    published = {k.removeprefix("pretrain."): v for k, v in tensors.items() if k.startswith("pretrain.")}
    sizes = {"num_mel_bins": "mel_bins", "layer_norm_eps": "layer_norm_eps"}
    sizes |= {"num_heads": "num_heads", "predictor_heads": "predictor_heads"}
    model = EquiAv(infer_config(published, **{ours: facts["config"][name] for ours, name in sizes.items()}))
    ours, left = to_ours(published)
    model.load_state_dict(ours)
    assert set(left.values()) <= {"the published model never uses it"}
    return Reference(model, run(model, tensors, facts), published, tensors, facts)


def run(model: EquiAv, tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[Projections, Projections]:
    def pair(name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"input.{name}"], tensors[f"input.{name}_augmented"]

    centroids = None
    if facts["config"]["centroid"]:
        centroids = (tensors["input.transforms_a"], tensors["input.transforms_v"])
    descriptions = (tensors["input.transform_a"], tensors["input.transform_v"])
    return model(pair("fbank"), pair("frame"), descriptions, centroids)


def losses(
    audio: Projections, visual: Projections, config: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published losses and accuracies, composed from ours."""
    forth, hits = info_nce(audio.inter, visual.inter, 0, config["tau_inter"])
    back, _ = info_nce(visual.inter, audio.inter, 0, config["tau_inter"])
    values, accuracies = {"inter": (forth + back) / 2}, {"accuracy_inter_percent": 100 * hits}
    for name, x in (("audio", audio), ("visual", visual)):
        one, hits = nt_xent(x.predicted, x.augmented, x.predicted, 0, config["tau_intra"])
        two, _ = nt_xent(x.augmented, x.predicted, x.augmented, 0, config["tau_intra"])
        values[f"intra_{name}"] = (one + two) / 2
        accuracies[f"accuracy_intra_{name}_percent"] = 100 * hits
    parts = (values["inter"], values["intra_audio"], values["intra_visual"])
    values["loss"] = sum(
        (w * part for w, part in zip(config["weights"], parts, strict=True)), torch.zeros(())
    )
    return values, accuracies


def check_losses(found: tuple[dict[str, Tensor], dict[str, Tensor]], expected: dict[str, float]) -> None:
    values, accuracies = found
    for name, value in values.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-5), name
    for name in set(accuracies) & set(expected):
        assert accuracies[name].item() == pytest.approx(expected[name], abs=1e-3), name


def test_the_config_is_read_off_the_weights(ref):
    ours, arch, config = ref.model.config, ref.model.config.architecture, ref.config
    assert (ours.image_size, ours.audio_length, ours.patch_size) == (
        config["img_size"], config["audio_length"], config["patch_size"],
    )  # fmt: skip
    assert (arch.embed_dim, arch.modality_depth, ours.mlp_ratio) == (
        config["embed_dim"], config["depth"], config["mlp_ratio"],
    )  # fmt: skip
    assert arch.predictor_head_dim == config["predictor_dim_head"]
    assert (arch.transform_dim, arch.projection_dim, arch.intra_dim, arch.inter_dim) == (
        config["transform_dim"], config["projection_hidden"], config["intra_dim"], config["inter_dim"],
    )  # fmt: skip


def test_projections(ref):
    for letter, projections in zip("av", ref.outputs, strict=True):
        for name, value in zip(("inv", "equi", "aug"), projections, strict=True):
            expected = ref.tensors[f"expect.embedding.{letter}_{name}"]
            torch.testing.assert_close(value, expected, atol=1e-4, rtol=0)


def test_losses_and_gradients(ref):
    audio, visual = ref.outputs
    found = losses(audio, visual, ref.config)
    check_losses(found, ref.facts["expect"]["model"])
    found[0]["loss"].backward()
    norms = {}
    for name, p in ref.model.named_parameters():
        # Published weights of the audio patches are three times ours, one for each equal channel.
        channels = 3**0.5 if name == "encoder.audio.patch_embed.weight" else 1.0
        norms[published_name(name)] = p.grad.norm().item() * channels
    for name, norm in ref.facts["grad_norm"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


def test_losses_of_given_embeddings(ref):
    given = {
        f"{letter}_{name}": ref.tensors[f"input.loss.{letter}_{name}"].clone().requires_grad_()
        for letter in "av"
        for name in ("inv", "equi", "aug")
    }
    audio, visual = (Projections(given[f"{x}_inv"], given[f"{x}_equi"], given[f"{x}_aug"]) for x in "av")
    found = losses(audio, visual, ref.config)
    check_losses(found, ref.facts["expect"]["losses_of_given_embeddings"])
    found[0]["loss"].backward()
    for name, value in given.items():
        torch.testing.assert_close(value.grad, ref.tensors[f"expect.loss_grad.{name}"], atol=1e-6, rtol=1e-4)


def test_written_weights_are_the_published_ones(ref):
    written = {k.removeprefix("module."): v for k, v in to_published(ref.model).items()}
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in ref.published.items()}
    never_used = set(to_ours(ref.published)[1])
    for name in written.keys() - never_used - {"patch_embed_a.proj.weight"}:
        assert torch.equal(written[name], ref.published[name]), name
    # Its three channels are equal in what they see, so their sum is all that counts.
    sums = (x["patch_embed_a.proj.weight"].sum(1) for x in (written, ref.published))
    torch.testing.assert_close(*sums)
