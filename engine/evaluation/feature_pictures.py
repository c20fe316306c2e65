"""Features as colours: what a teacher says of each patch beside what its student predicts."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

_COMPONENTS = 3


def feature_colours(target: Tensor, prediction: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """The first three principal components of the targets as red, green and blue.

    Components, and the range of values from black to full colour, are the targets' own over all clips, so that the
    same colour means the same in both.

    Args:
        target: (B, L, D).
        prediction: (B, L, D), in the targets' scale.
        shown: (B, L), 1 where something was predicted; elsewhere the prediction is dark.

    Returns:
        (B, L, 3) uint8 of targets and of predictions.
    """
    rows = target.flatten(0, 1).double()
    mean = rows.mean(dim=0)
    _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
    vectors = vectors[:, -_COMPONENTS:].flip(1)
    # A component's sign is arbitrary: the largest entry shall be positive.
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    vectors = vectors * largest.sign()
    values = (rows - mean) @ vectors
    low, high = values.quantile(0.01, dim=0), values.quantile(0.99, dim=0)

    def coloured(features: Tensor) -> Tensor:
        position = ((features.double() - mean) @ vectors - low) / (high - low).clamp_min(1e-12)
        return (position.clamp(0, 1) * 255).round().byte()

    return coloured(target), coloured(prediction) * shown.unsqueeze(-1).byte()


def colours_of_film(colours: Tensor, grid: tuple[int, int, int], tubelet: int, patch_size: int) -> Tensor:
    """(B, L, 3) of a (moments, rows, columns) grid -> (B, N, 3, H, W), each tubelet a square of each of its frames."""
    moments, rows, _ = grid
    cells = rearrange(colours, "b (n h w) c -> b n c h w", n=moments, h=rows)
    return repeat(cells, "b n c h w -> b (n k) c (h p) (w q)", k=tubelet, p=patch_size, q=patch_size)


def colours_of_spectrogram(colours: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """(B, L, 3) of a (time, frequency) grid -> (B, 3, F, T), low frequencies at the bottom."""
    cells = rearrange(colours, "b (t f) c -> b c f t", t=grid[0]).flip(2)
    return repeat(cells, "b c f t -> b c (f p) (t q)", p=patch_size, q=patch_size)
