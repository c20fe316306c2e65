"""A small CAV-MAE Sync, and its losses as the published code composes them."""

from __future__ import annotations

from typing import Any

import torch
from support.small_models import SMALL, inputs
from torch import Tensor

from models import info_nce, reconstruction_loss
from models.cav_mae_sync.config import CavMaeSyncModelConfig
from models.cav_mae_sync.encoder import SyncStreams
from models.cav_mae_sync.model import CavMaeSync, SyncOutput
from models.layers.masking import Mask, Masker


def reconstruction(
    model: CavMaeSync, tensors: dict[str, Tensor], masks: tuple[Mask, Mask], out: SyncOutput
) -> tuple[Tensor, Tensor]:
    """The losses of both modalities."""
    assert out.pred_audio is not None
    assert out.pred_visual is not None
    audio, visual = (
        model.patchify_audio(tensors["input.fbank"]),
        model.patchify_visual(tensors["input.frame"]),
    )
    norm_pix = model.config.norm_pix_loss
    return (
        reconstruction_loss(out.pred_audio, audio, masks[0].mask, norm_pix),
        reconstruction_loss(out.pred_visual, visual, masks[1].mask, norm_pix),
    )


def local_contrast(streams: SyncStreams, temperature: float) -> tuple[Tensor, Tensor]:
    """The contrast of mean patches, visual to audio."""
    assert streams.audio is not None
    assert streams.visual is not None
    return info_nce(streams.visual.mean(dim=1), streams.audio.mean(dim=1), 0, temperature)


def small_sync(**overrides: Any) -> Any:
    """The same weights for the same overrides."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = SMALL | {"segment_length": 32, "num_registers": 2} | overrides
    return CavMaeSync(CavMaeSyncModelConfig("cav_mae_sync_tiny", **sizes))


def one_pass(
    model: CavMaeSync, batch: int = 3, **parts: bool
) -> tuple[Tensor, Tensor, tuple[Mask, Mask], Any]:
    """fbank, frames, masks and what a pass makes of them."""
    fbank, frames, *noise = inputs(model.config, batch)
    fbank = fbank[:, : model.config.segment_length]
    masks = Masker(model.config)(*noise)
    return fbank, frames, masks, model(fbank, frames, *masks, **parts)
