"""TG-DP's two passes and its teacher are the published ones, number for number."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support.published import load_published
from support.sync import reconstruction
from torch import Tensor

from models import MaskConfig, info_nce
from models.cav_mae_sync.encoder import GlobalAttention
from models.cav_mae_sync.model import CavMaeSync, SyncOutput
from models.layers.masking import Mask, Masker, mask_from_score
from models.weights.published import published_name


class Reference(NamedTuple):
    model: CavMaeSync
    masks: tuple[Mask, Mask]
    reconstructed: SyncOutput
    contrast_masks: tuple[Mask, Mask]
    contrasted: Any
    teacher: GlobalAttention
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def expect(self, name: str, value: Tensor | None) -> None:
        assert value is not None
        torch.testing.assert_close(value, self.tensors[f"expect.{name}"], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def ref() -> Reference:
    default = Path(__file__).parents[1] / "reference" / "tg_dp_a"
    path = Path(os.environ.get("EARSIGHT_REFERENCE_TG_DP", default))
    tensors, facts = load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())
    config = facts["config"]
    model, _ = load_published(
        {
            key.removeprefix("pretrain."): value
            for key, value in tensors.items()
            if key.startswith("pretrain.")
        },
        num_heads=config["num_heads"],
        decoder_num_heads=config["decoder_num_heads"],
        num_mel_bins=config["mel_bins"],
        layer_norm_eps=config["layer_norm_eps"],
        norm_pix_loss=config["norm_pix_loss"],
        mask=MaskConfig(config["mask_ratio_reconstruct"], config["mask_ratio_reconstruct"]),
    )
    ours = model.config
    sizes = (config["img_size"], config["audio_length"], config["num_register_tokens"])
    assert (ours.image_size, ours.segment_length, ours.num_registers) == sizes
    assert ours.contrast_depth == config["contrastive_head_blocks"]
    fbank, frames = tensors["input.fbank"], tensors["input.frame"]
    masker, ratio = Masker(ours), config["mask_ratio_contrast"]
    masks = masker(tensors["input.noise_a.reconstruct"], tensors["input.noise_v.reconstruct"])
    contrast_masks = (
        masker.audio(tensors["input.noise_a.contrast"], ratio),
        masker.visual(tensors["input.noise_v.contrast"], ratio),
    )
    return Reference(
        model,
        masks,
        model(fbank, frames, *masks, contrast=False),
        contrast_masks,
        model(fbank, frames, *contrast_masks, reconstruct=False),
        model.encoder.global_attention(fbank, frames),
        tensors,
        facts,
    )


def test_masks_and_global_tokens(ref):
    ref.expect("mask_a.contrast", ref.contrast_masks[0].mask)
    ref.expect("mask_v.contrast", ref.contrast_masks[1].mask)
    ref.expect("global_audio", ref.contrasted.streams.global_audio)
    ref.expect("global_visual", ref.contrasted.streams.global_visual)


def test_losses_and_gradients(ref):
    expect, config, streams = ref.facts["expect"], ref.facts["config"], ref.contrasted.streams
    audio, visual = reconstruction(ref.model, ref.tensors, ref.masks, ref.reconstructed)
    nce, hits = info_nce(streams.global_visual, streams.global_audio, 0, config["temperature"])
    back, hits_back = info_nce(streams.global_audio, streams.global_visual, 0, config["temperature"])
    weighted, accuracy = config["contrast_loss_weight"] * (nce + back) / 2, (hits + hits_back) / 2
    losses = {
        "loss": audio + visual + weighted,
        "loss_mae": audio + visual,
        "loss_mae_a": audio,
        "loss_mae_v": visual,
        "loss_contrastive_weighted": weighted,
    }
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expect[name], rel=1e-5), name
    assert accuracy.item() == pytest.approx(expect["contrastive_accuracy"], abs=1e-6)
    losses["loss"].backward()
    norms = {published_name(name): p.grad.norm().item() for name, p in ref.model.named_parameters()}
    for name, norm in ref.facts["grad_norm"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name


def test_the_teacher_ranks_the_patches(ref):
    for modality, ours in (("a", ref.teacher.audio), ("v", ref.teacher.visual)):
        ref.expect(f"teacher.probability_{modality}", ours.softmax(dim=1))
        rank = ref.tensors[f"expect.teacher.rank_{modality}"]
        in_order = ours.gather(1, rank)
        assert (in_order.diff(dim=1) < 1e-6).all()  # descending, equal ones in any order
        kept = mask_from_score(ours, ref.facts["config"]["mask_ratio_contrast"]).ids_keep
        torch.testing.assert_close(ours.gather(1, kept), in_order[:, : kept.shape[1]], atol=1e-6, rtol=0)
    ref.expect("teacher.global_audio", ref.teacher.global_audio)
    ref.expect("teacher.global_visual", ref.teacher.global_visual)
