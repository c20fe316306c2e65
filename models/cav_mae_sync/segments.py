"""Which stretch of a clip's spectrogram belongs to which of its pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def published_middles(frame_index: Tensor, num_frames: Tensor, length: Tensor | int) -> Tensor:
    """The rows at which pictures are shown, if they divide a clip evenly: ``round(i * length / num_frames)``.

    Args:
        frame_index: (B, N) int64, the pictures' numbers i, from 0.
        num_frames: (B,) int64, how many pictures the clip has.
        length: Rows of the clip, of all clips or (B,) int64 of each.

    Returns:
        (B, N) int64; halves are rounded to even.
    """
    return (frame_index * _column(length, frame_index) / num_frames[:, None].double()).round().long()


def segment_starts(middles: Tensor, length: Tensor | int, rows: int) -> Tensor:
    """The first row of the stretch around each picture, as published.

    ::

        start = max(0, middle - rows // 2)
        if start + rows > length: start = max(0, length - rows)

    Args:
        middles: (B, N) int64, the rows at which pictures are shown.
        length: Rows of the clip, of all clips or (B,) int64 of each.
        rows: Rows of a stretch.

    Returns:
        (B, N) int64.
    """
    last = (_column(length, middles) - rows).clamp_min(0)
    return torch.minimum((middles - rows // 2).clamp_min(0), last)


def _column(length: Tensor | int, like: Tensor) -> Tensor:
    if isinstance(length, Tensor):
        return length[:, None]
    return torch.full((len(like), 1), length, device=like.device)


def num_covering(length: int, rows: int) -> int:
    """The fewest stretches that cover ``length`` rows; one where a stretch is longer."""
    return -(-max(length, 1) // rows)


def covering_starts(length: int, rows: int, device: torch.device | None = None) -> Tensor:
    """Their first rows, evenly spaced: (N,) int64; halves are rounded to even."""
    last, count = max(0, length - rows), num_covering(length, rows)
    places = torch.arange(count, dtype=torch.float64, device=device)
    return (places * last / max(1, count - 1)).round().long()


def cut_segments(fbank: Tensor, starts: Tensor, rows: int) -> Tensor:
    """(B, T, F) and (B, N) first rows -> (B, N, rows, F)."""
    ids = starts[:, :, None] + torch.arange(rows, device=fbank.device)
    return fbank[torch.arange(fbank.shape[0], device=fbank.device)[:, None, None], ids]
