"""A MAViL small enough to test with, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.mavil.config import MavilModelConfig
from models.mavil.mae import MavilMAE

SMALL_MAVIL: dict[str, Any] = {
    "image_size": 32,
    "audio_length": 64,
    "num_mel_bins": 32,
    "frames": 4,
    "embed_dim": 32,
    "num_heads": 2,
    "depth": 2,
    "fusion_depth": 1,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def small_mavil(**overrides: Any) -> MavilMAE:
    """The same weights for the same overrides; constants are perturbed, so that a forgotten one shows."""
    torch.manual_seed(0)
    model = MavilMAE(MavilModelConfig("mavil_tiny", **(SMALL_MAVIL | overrides)))
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1:
                value += 0.2 * torch.randn(value.shape)
    return model


def mavil_inputs(config: MavilModelConfig, batch: int = 3, seed: int = 1) -> tuple[Tensor, ...]:
    """fbank, frames and the noise of both masks."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, config.audio_length, config.num_mel_bins, generator=generator),
        torch.randn(batch, config.num_frames, 3, config.image_size, config.image_size, generator=generator),
        torch.rand(batch, config.num_audio_tokens, generator=generator),
        torch.rand(batch, config.num_visual_tokens, generator=generator),
    )
