"""A model small enough to test with, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models import AudioVisualMAE, CavMaeModelConfig, MAEOutput, info_nce, reconstruction_loss

SMALL: dict[str, Any] = {
    "image_size": 32,
    "audio_length": 64,
    "num_mel_bins": 32,
    "embed_dim": 32,
    "num_heads": 2,
    "modality_depth": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def small_model(**overrides: Any) -> AudioVisualMAE:
    """The same weights for the same overrides."""
    torch.manual_seed(0)
    return AudioVisualMAE(CavMaeModelConfig("cav_mae_tiny", **(SMALL | overrides)))


def inputs(config: CavMaeModelConfig, batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """fbank, frames and the noise of both masks."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, config.audio_length, config.num_mel_bins, generator=generator),
        torch.randn(batch, 3, config.image_size, config.image_size, generator=generator),
        torch.rand(batch, config.num_audio_tokens, generator=generator),
        torch.rand(batch, config.num_visual_tokens, generator=generator),
    )


def mae_loss(model: AudioVisualMAE, fbank: Tensor, frames: Tensor, out: MAEOutput) -> Tensor:
    """The sum of both reconstruction losses."""
    assert out.pred_audio is not None
    assert out.pred_visual is not None
    norm_pix = model.config.norm_pix_loss
    audio = reconstruction_loss(out.pred_audio, model.patchify_audio(fbank), out.mask_audio, norm_pix)
    visual = reconstruction_loss(out.pred_visual, model.patchify_visual(frames), out.mask_visual, norm_pix)
    return audio + visual


def contrastive_loss(out: MAEOutput, temperature: float = 0.05) -> tuple[Tensor, Tensor]:
    """Visual to audio, as published."""
    assert out.embed_audio is not None
    assert out.embed_visual is not None
    return info_nce(out.embed_visual, out.embed_audio, 0, temperature)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Each parameter's gradient by name; all must have one."""
    found = {}
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        found[name] = p.grad
    return found


def full_loss(model: AudioVisualMAE, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The published pretraining loss of one batch."""
    out = model(*batch)
    return mae_loss(model, batch[0], batch[1], out) + 0.01 * contrastive_loss(out)[0]
