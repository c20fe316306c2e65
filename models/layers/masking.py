"""Masks as pure functions of given noise: which tokens are kept, in which order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.cav_mae.config import MaskStrategy, ModelConfig


@dataclass(frozen=True)
class Mask:
    """A mask over L tokens of which K are kept.

    Attributes:
        ids_keep: (B, K) int64, the kept tokens in ascending order of their noise.
        ids_restore: (B, L) int64, the place of each token in the shuffled order: kept ones first, then
            removed ones.
        mask: (B, L) float32, 1 = removed.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor


def mask_from_noise(noise: Tensor, num_kept: int) -> Mask:
    """Keeps the ``num_kept`` tokens of lowest noise: (B, L) noise -> `Mask`."""
    # Stable: equal noise (one sample in a hundred has a pair) must not be ordered by the device's sort.
    ids_shuffle = noise.argsort(dim=1, stable=True)
    places = torch.arange(noise.shape[1], device=noise.device).expand_as(ids_shuffle)
    ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, places)
    return Mask(ids_shuffle[:, :num_kept], ids_restore, (ids_restore >= num_kept).float())


def keep_columns_and_rows(
    noise_columns: Tensor, noise_rows: Tensor, column_ratio: float, row_ratio: float
) -> Tensor:
    """Removes whole columns, then whole rows of a grid: the mask of AudioMAE's and MAViL's fine-tuning.

    ::

        columns = the int(X * (1 - column_ratio)) of lowest noise_columns, ascending
        rows    = the int(Y * (1 - row_ratio)) of lowest noise_rows, ascending
        ids     = [x * Y + y for x in columns for y in rows]

    Args:
        noise_columns: (B, X), such as the moments of a spectrogram.
        noise_rows: (B, Y), such as its frequencies; the tokens run through the rows of a column first.
        column_ratio: Share of the columns removed.
        row_ratio: Share of the rows removed.

    Returns:
        (B, K) int64 ids of the kept tokens.
    """
    (_, num_columns), (_, num_rows) = noise_columns.shape, noise_rows.shape
    columns = mask_from_noise(noise_columns, int(num_columns * (1 - column_ratio))).ids_keep
    rows = mask_from_noise(noise_rows, int(num_rows * (1 - row_ratio))).ids_keep
    return (columns[:, :, None] * num_rows + rows[:, None, :]).flatten(1)


def _lowest(score: Tensor, count: int) -> Tensor:
    """(B, N) -> (B, N) bool, true at the ``count`` lowest."""
    ranks = score.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < count


def structured_noise(noise: Tensor, grid: tuple[int, int], ratio: float, strategy: MaskStrategy) -> Tensor:
    """Raises the noise of whole rows and columns above all others, so that these go first.

    Which columns go is read off the noise itself: the fractional part of a column's sum is uniform and
    independent of every single value in it. As in CAV-MAE and AudioMAE, the number kept stays that of random
    masking: where whole columns do not add up to it, random tokens fill the difference, and
    ``time_frequency`` takes 0.7 of the ratio from each axis.

    Args:
        noise: (B, L) in [0, 1).
        grid: Rows (frequency) and columns (time), L = rows * columns.
        ratio: Share removed.
        strategy: Along which axes.

    Returns:
        (B, L) in [0, 2).
    """
    if strategy is MaskStrategy.random:
        return noise
    rows, columns = grid
    both = 0.7 if strategy is MaskStrategy.time_frequency else 1.0
    cells = noise.double().reshape(-1, rows, columns)  # sums exact, so equal on every device
    removed = torch.zeros_like(cells, dtype=torch.bool)
    if strategy is not MaskStrategy.frequency:
        removed = removed | _lowest(cells.sum(1).frac(), int(columns * ratio * both))[:, None, :]
    if strategy is not MaskStrategy.time:
        removed = removed | _lowest(cells.sum(2).frac(), int(rows * ratio * both))[:, :, None]
    return noise + removed.flatten(1)


class Masker(nn.Module):
    """The masks of a pretraining batch.

    Args:
        config: Its grids and ``mask`` settings are used.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def audio(self, noise: Tensor) -> Mask:
        """The mask of audio tokens from (B, La) noise in [0, 1)."""
        self._check(noise, self.config.num_audio_tokens, "audio")
        mask = self.config.mask
        noise = structured_noise(noise, self.config.audio_grid, mask.audio_ratio, mask.audio_strategy)
        return mask_from_noise(noise, self.config.num_kept_audio)

    def visual(self, noise: Tensor) -> Mask:
        """The mask of visual tokens from (B, Lv) noise in [0, 1)."""
        self._check(noise, self.config.num_visual_tokens, "visual")
        return mask_from_noise(noise, self.config.num_kept_visual)

    def forward(self, noise_audio: Tensor, noise_visual: Tensor) -> tuple[Mask, Mask]:
        """Both masks."""
        return self.audio(noise_audio), self.visual(noise_visual)

    @staticmethod
    def _check(noise: Tensor, num_tokens: int, name: str) -> None:
        if noise.ndim != 2 or noise.shape[1] != num_tokens:
            raise ValueError(
                f"the {name} noise has shape {tuple(noise.shape)}; the model needs (B, {num_tokens})"
            )
