"""Clips with a stretch of another's sound, and a part of another's picture: what spliced-audio and mixup terms need.

Which stretch and which part are functions of the sample's seed.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from models.sample_random import Stream, uniform

#: The share of a clip's length, or of a picture's side, that comes from the other clip: from, to.
_SHARE = (0.2, 0.5)


def _interval(draws: Tensor, length: int) -> Tensor:
    """(B, 2) draws, of size and place -> (B, length) bool, true inside one interval of each row."""
    size = _SHARE[0] + (_SHARE[1] - _SHARE[0]) * draws[:, :1]
    start = (1 - size) * draws[:, 1:]
    place = (torch.arange(length, device=draws.device) + 0.5) / length
    return (place >= start) & (place < start + size)


def splice_sounds(
    waveform: Tensor, other: Tensor, num_samples: Tensor, seeds: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Puts a stretch of another clip's sound in the place of the clip's own, in some clips.

    Args:
        waveform: (B, S).
        other: (B, S) the clip to take it from, for each.
        num_samples: (B,) true lengths; nothing is put behind a clip's end.
        seeds: (B,).
        share: Of the clips, 0 … 1.

    Returns:
        (B, S), and (B, S) float32, 1 = own sound.
    """
    draws = uniform(seeds, Stream.SPLICE_AUDIO, (3,))
    chosen = _interval(draws[:, 1:], waveform.shape[1]) & (draws[:, :1] < share)
    inside = torch.arange(waveform.shape[1], device=seeds.device) < num_samples[:, None]
    chosen = chosen & inside
    return torch.where(chosen, other, waveform), (~chosen).float()


def mix_pictures(frames: Tensor, other: Tensor, seeds: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Puts a rectangle of another clip's picture in the place of the clip's own, in some clips.

    Args:
        frames: (B, N, 3, H, W).
        other: (B, N, 3, H, W) the clip to take it from, for each.
        seeds: (B,).
        share: Of the clips, 0 … 1.

    Returns:
        (B, N, 3, H, W), and (B, H, W) float32, 1 = own picture.
    """
    draws = uniform(seeds, Stream.MIX_PICTURE, (5,))
    rows, columns = (_interval(draws[:, 1 + 2 * n : 3 + 2 * n], frames.shape[-2 + n]) for n in range(2))
    chosen = rearrange(rows, "b h -> b h 1") & rearrange(columns, "b w -> b 1 w")
    chosen = chosen & (draws[:, :1, None] < share)
    return torch.where(chosen[:, None, None], other, frames), (~chosen).float()
