"""CAV-MAE Sync is the published one, number for number."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support.published import load_published
from support.sync import local_contrast, reconstruction
from torch import Tensor

from models import MaskConfig, info_nce
from models.cav_mae_sync.model import CavMaeSync, SyncOutput
from models.cav_mae_sync.segments import published_middles, segment_starts
from models.layers.masking import Mask, Masker
from models.weights.published import published_name


class Reference(NamedTuple):
    model: CavMaeSync
    masks: tuple[Mask, Mask]
    out: SyncOutput
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def expect(self, name: str, value: Tensor | None) -> None:
        assert value is not None
        torch.testing.assert_close(value, self.tensors[f"expect.{name}"], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def ref() -> Reference:
    default = Path(__file__).parents[1] / "reference" / "cav_mae_sync_a"
    path = Path(os.environ.get("EARSIGHT_REFERENCE_CAV_MAE_SYNC", default))
    tensors = load_file(f"{path}.safetensors")
    facts = json.loads(Path(f"{path}.json").read_text())
    config = facts["config"]
    model, _ = load_published(
        {
            name.removeprefix("pretrain."): value
            for name, value in tensors.items()
            if name.startswith("pretrain.")
        },
        num_heads=config["num_heads"],
        decoder_num_heads=config["decoder_num_heads"],
        num_mel_bins=config["mel_bins"],
        layer_norm_eps=config["layer_norm_eps"],
        norm_pix_loss=config["norm_pix_loss"],
        mask=MaskConfig(config["mask_ratio"], config["mask_ratio"]),
    )
    assert isinstance(model, CavMaeSync)
    sizes = (config["img_size"], config["audio_length"], config["patch_size"], config["num_register_tokens"])
    ours = model.config
    assert (ours.image_size, ours.segment_length, ours.patch_size, ours.num_registers) == sizes
    assert ours.contrast_depth == config["contrastive_head_blocks"]
    masks = Masker(ours)(tensors["input.noise_a"], tensors["input.noise_v"])
    out = model(tensors["input.fbank"], tensors["input.frame"], *masks)
    return Reference(model, masks, out, tensors, facts)


def test_masks(ref):
    ref.expect("mask_a", ref.masks[0].mask)
    ref.expect("mask_v", ref.masks[1].mask)


def test_streams_and_predictions(ref):
    streams = ref.out.streams
    ref.expect("latent_joint", streams.joint)
    ref.expect("latent_audio", streams.audio)
    ref.expect("latent_visual", streams.visual)
    ref.expect("global_audio", streams.global_audio)
    ref.expect("global_visual", streams.global_visual)
    ref.expect("pred_a", ref.out.pred_audio)
    ref.expect("pred_v", ref.out.pred_visual)


def test_retrieval_features(ref):
    streams = ref.model.encoder(ref.tensors["input.fbank"], ref.tensors["input.frame"], joint=False)
    ref.expect("feature_audio_tokens", streams.audio)
    ref.expect("feature_visual_tokens", streams.visual)
    ref.expect("feature_audio", streams.global_audio)
    ref.expect("feature_visual", streams.global_visual)


def test_losses_and_gradients(ref):
    expect, config, streams = ref.facts["expect"], ref.facts["config"], ref.out.streams
    audio, visual = reconstruction(ref.model, ref.tensors, ref.masks, ref.out)
    nce, accuracy = info_nce(streams.global_visual, streams.global_audio, 0, config["temperature"])
    back, _ = info_nce(streams.global_audio, streams.global_visual, 0, config["temperature"])
    contrast = nce
    if config["global_local_losses"]:
        local, local_accuracy = local_contrast(streams, config["temperature"])
        contrast, accuracy = (nce + local) / 2, (accuracy + local_accuracy) / 2
    total = audio + visual + config["contrast_loss_weight"] * contrast
    losses = {
        "loss": total,
        "loss_mae": audio + visual,
        "loss_mae_a": audio,
        "loss_mae_v": visual,
        "loss_contrastive_weighted": config["contrast_loss_weight"] * contrast,
        "contrast_one_direction_global": nce,
        "contrast_both_directions_global": (nce + back) / 2,
    }
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expect[name], rel=1e-5), name
    assert accuracy.item() == pytest.approx(expect["contrastive_accuracy"], abs=1e-6)
    total.backward()
    norms = {published_name(name): p.grad.norm().item() for name, p in ref.model.named_parameters()}
    for name, norm in ref.facts["grad_norm"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


def test_segments(ref):
    for setting, expected in ref.facts["segments_of_1024"].items():
        frames, rows = map(int, setting.split("x"))
        middles = published_middles(torch.arange(frames)[None], torch.tensor([frames]), 1024)
        starts = segment_starts(middles, 1024, rows)[0]
        assert [[start, start + rows] for start in starts.tolist()] == expected, setting
