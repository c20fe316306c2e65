"""Heat laid over frames, for people to look at. Negative similarity is shown as nothing, not as heat."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from engine.evaluation.grounding import to_pixels

#: Moments of each clip in a sheet.
_MOMENTS = 6
#: Black, blue, magenta, orange, yellow: the colours of heat from 0 to 1.
_COLORS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
#: Opacity of the hottest place.
_OPACITY = 0.75


def hottest(heat: Tensor) -> Tensor:
    """() what is shown as full heat: the highest similarity, or 1 where none is positive."""
    top = heat.amax()
    return torch.where(top > 0, top, torch.ones_like(top))


def overlay(frames: Tensor, heat: Tensor, top: Tensor | float) -> Tensor:
    """Frames under their heat.

    Args:
        frames: (B, 3, h, w) uint8.
        heat: (B, H, W) similarities of their places.
        top: The similarity that is shown as full heat; 0 and less are shown as none.

    Returns:
        (B, 3, h, w) uint8.
    """
    share = (to_pixels(heat.float(), (frames.shape[-2], frames.shape[-1])) / top).clamp(0, 1)
    alpha = _OPACITY * share[:, None]
    return ((1 - alpha) * frames + alpha * _colors(share)).round().byte()


def _colors(share: Tensor) -> Tensor:
    """(B, h, w) in 0 … 1 -> (B, 3, h, w) in 0 … 255."""
    table = torch.tensor(_COLORS, dtype=torch.float32, device=share.device)
    place = share * (len(table) - 1)
    low = place.long().clamp_max(len(table) - 2)
    between = (place - low)[..., None]
    return rearrange(table[low] * (1 - between) + table[low + 1] * between, "b h w c -> b c h w")


def heat_sheet(frames: Tensor, heat: Tensor, real: Tensor) -> Tensor:
    """A row for each clip: its frame, its heat over all of its sound, and at six moments of it.

    Args:
        frames: (B, 3, h, w) uint8.
        heat: (B, T, H, W) similarity of every place with every moment.
        real: (B, T) 1 for moments of the clip, 0 for padding.

    Returns:
        (3, B·h, 8·w) uint8. All heat of the sheet is on one scale.
    """
    top = hottest(heat)
    columns = [
        frames,
        overlay(frames, (heat * real[:, :, None, None]).sum(1) / real.sum(1)[:, None, None], top),
    ]
    count = real.sum(1).clamp_min(1)
    for n in range(_MOMENTS):
        moment = ((n + 0.5) / _MOMENTS * count).long()
        columns.append(overlay(frames, heat[torch.arange(len(heat)), moment], top))
    return rearrange(torch.stack(columns), "n b c h w -> c (b h) (n w)")
