"""The model is the published one, number for number."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support.published import load_published
from support.small_models import contrastive_loss, mae_loss
from torch import Tensor

from models import AudioVisualMAE, MAEOutput, MaskConfig, info_nce
from models.classifier import AudioVisualClassifier
from models.weights.published import published_name


class Reference(NamedTuple):
    model: AudioVisualMAE
    classifier: AudioVisualClassifier
    out: MAEOutput
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def expect(self, name: str, value: Tensor | None) -> None:
        assert value is not None
        torch.testing.assert_close(value, self.tensors[f"expect.{name}"], atol=1e-4, rtol=0)


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
    }


@pytest.fixture(scope="module")
def ref() -> Reference:
    default = Path(__file__).parents[1] / "reference" / "cav_mae_norm_pix"
    path = Path(os.environ.get("EARSIGHT_REFERENCE", default))
    tensors = load_file(f"{path}.safetensors")
    facts = json.loads(Path(f"{path}.json").read_text())
    config = facts["config"]
    known = {
        "num_heads": config["num_heads"],
        "num_mel_bins": config["mel_bins"],
        "layer_norm_eps": config["layer_norm_eps"],
        "norm_pix_loss": config["norm_pix_loss"],
        "mask": MaskConfig(config["mask_ratio"], config["mask_ratio"]),
    }
    model, _ = load_published(
        part(tensors, "pretrain"), decoder_num_heads=config["decoder_num_heads"], **known
    )
    classifier, _ = load_published(part(tensors, "finetune"), **known)
    assert isinstance(model, AudioVisualMAE)
    assert isinstance(classifier, AudioVisualClassifier)
    sizes = (config["img_size"], config["audio_length"], config["patch_size"])
    assert (model.config.image_size, model.config.audio_length, model.config.patch_size) == sizes
    out = model(*(tensors[f"input.{name}"] for name in ("fbank", "frame", "noise_a", "noise_v")))
    return Reference(model, classifier, out, tensors, facts)


def test_masks(ref):
    ref.expect("mask_a", ref.out.mask_audio)
    ref.expect("mask_v", ref.out.mask_visual)


def test_latents(ref):
    ref.expect("latent_joint", ref.out.latents.joint)
    ref.expect("latent_audio", ref.out.latents.audio)
    ref.expect("latent_visual", ref.out.latents.visual)


def test_predictions(ref):
    ref.expect("pred_a", ref.out.pred_audio)
    ref.expect("pred_v", ref.out.pred_visual)


def test_retrieval_features(ref):
    found = ref.model.encoder.embed(ref.tensors["input.fbank"], ref.tensors["input.frame"])
    audio, visual = found.audio, found.visual
    ref.expect("feature_audio", audio)
    ref.expect("feature_visual", visual)


def test_losses_and_gradients(ref):
    fbank, frames = ref.tensors["input.fbank"], ref.tensors["input.frame"]
    expect, config = ref.facts["expect"], ref.facts["config"]
    mae = mae_loss(ref.model, fbank, frames, ref.out)
    nce, accuracy = contrastive_loss(ref.out, config["temperature"])
    back, _ = info_nce(ref.out.embed_audio, ref.out.embed_visual, 0, config["temperature"])
    total = mae + config["contrast_loss_weight"] * nce
    losses = {
        "loss": total,
        "loss_mae": mae,
        "loss_contrastive_weighted": config["contrast_loss_weight"] * nce,
        "contrastive_bidirectional_unweighted": (nce + back) / 2,
    }
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expect[name], rel=1e-5), name
    assert accuracy.item() == pytest.approx(expect["contrastive_accuracy"], abs=1e-6)
    total.backward()
    norms = {published_name(name): p.grad.norm().item() for name, p in ref.model.named_parameters()}
    for name, norm in ref.facts["grad_norm"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize(
    ("name", "audio", "visual", "trained_on_both"),
    [
        ("multimodal", True, True, True),
        ("audioonly", True, False, False),
        ("videoonly", False, True, False),
        ("missingaudioonly", True, False, True),
        ("missingvideoonly", False, True, True),
    ],
)
def test_logits(ref, name, audio, visual, trained_on_both):
    fbank = ref.tensors["input.fbank"] if audio else None
    frames = ref.tensors["input.frame"] if visual else None
    ref.expect(f"logits.{name}", ref.classifier(fbank, frames, trained_on_both=trained_on_both))
