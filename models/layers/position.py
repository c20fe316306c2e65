"""Fixed sin-cos positions: of pictures and spectrograms as in MAE, of films as in MAE-ST and MAViL."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_1d(embed_dim: int, positions: Tensor) -> Tensor:
    """Sines, then cosines, at ``embed_dim / 2`` geometric frequencies from 1 down to 1/10000.

    Args:
        embed_dim: Even width of the result.
        positions: (L,) float64.

    Returns:
        (L, embed_dim) float64.
    """
    half = embed_dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(embed_dim: int, grid: tuple[int, int]) -> Tensor:
    """The table of a grid: the first half of the channels encodes the column, the second half the row.

    Args:
        embed_dim: Width D, a multiple of 4.
        grid: Rows and columns.

    Returns:
        (rows * columns, D) float32, row-major.

    Raises:
        ValueError: The width is not a multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"2-D sin-cos positions need a width that is a multiple of 4, not {embed_dim}")
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    halves = [sincos_1d(embed_dim // 2, axis.flatten()) for axis in (columns, rows)]
    return torch.cat(halves, dim=1).float()


def sincos_3d(embed_dim: int, grid: tuple[int, int, int]) -> Tensor:
    """The table of a film's grid: the first quarter of the channels encodes the moment, the rest is `sincos_2d`.

    Args:
        embed_dim: Width D, a multiple of 16.
        grid: Moments, rows and columns.

    Returns:
        (moments * rows * columns, D) float32, row-major.

    Raises:
        ValueError: The width is not a multiple of 16.
    """
    if embed_dim % 16:
        raise ValueError(f"3-D sin-cos positions need a width that is a multiple of 16, not {embed_dim}")
    moments, rows, columns = grid
    time = sincos_1d(embed_dim // 4, torch.arange(moments, dtype=torch.float64)).float()
    space = sincos_2d(embed_dim // 4 * 3, (rows, columns))
    return torch.cat([time.repeat_interleave(rows * columns, dim=0), space.repeat(moments, 1)], dim=1)
