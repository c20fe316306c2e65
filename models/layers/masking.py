"""Masks as pure functions of given noise: which tokens are kept, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn


class MaskStrategy(StrEnum):
    """Which tokens of the spectrogram are removed together.

    ``random`` removes single patches, ``time`` whole columns (all mel bins of some moments), ``frequency``
    whole rows (some mel bins at all times) and ``time_frequency`` both. Section 4.3 of CAV-MAE (arXiv
    2210.07839) compares them.
    """

    random = "random"
    time = "time"
    frequency = "frequency"
    time_frequency = "time_frequency"


@dataclass(frozen=True)
class MaskConfig:
    """How much of each modality is removed.

    Attributes:
        audio_ratio: Share of the audio tokens removed, in [0, 1).
        visual_ratio: Share of the visual tokens removed, in [0, 1).
        audio_strategy: Which audio tokens go together. Visual tokens are always removed at random.
    """

    audio_ratio: float = 0.75
    visual_ratio: float = 0.75
    audio_strategy: MaskStrategy = MaskStrategy.random

    def __post_init__(self) -> None:
        for name in ("audio_ratio", "visual_ratio"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(
                    f"mask.{name} is {value}; it is the share of tokens removed and must lie in [0, 1)"
                )
        if self.audio_strategy not in set(MaskStrategy):
            known = ", ".join(MaskStrategy)
            raise ValueError(f"mask.audio_strategy is {self.audio_strategy!r}; it must be one of {known}")
        object.__setattr__(self, "audio_strategy", MaskStrategy(self.audio_strategy))


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


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Rows of each sample: (B, L, D) and ids (B, K) -> (B, K, D)."""
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


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


def mask_from_score(score: Tensor, ratio: float) -> Mask:
    """Keeps the tokens of highest score, the earlier of equal ones: (B, L) score, ``ratio`` removed -> `Mask`."""
    return mask_from_noise(-score, num_kept(score.shape[1], ratio))


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
    axes, share = _AXES[strategy]
    rows, columns = grid
    # In float64 the sums are exact, so equal on every device.
    cells = rearrange(noise.double(), "b (rows columns) -> b rows columns", rows=rows, columns=columns)
    removed = torch.zeros_like(cells, dtype=torch.bool)
    if "time" in axes:
        removed = removed | _lowest(cells.sum(1).frac(), int(columns * ratio * share))[:, None, :]
    if "frequency" in axes:
        removed = removed | _lowest(cells.sum(2).frac(), int(rows * ratio * share))[:, :, None]
    return noise + removed.flatten(1)


#: The axes along which each strategy removes, and the share of the ratio that it takes from each.
_AXES: dict[MaskStrategy, tuple[tuple[str, ...], float]] = {
    MaskStrategy.time: (("time",), 1.0),
    MaskStrategy.frequency: (("frequency",), 1.0),
    MaskStrategy.time_frequency: (("time", "frequency"), 0.7),
}


def num_kept(num_tokens: int, ratio: float) -> int:
    """Tokens left where ``ratio`` of them is removed, as published code rounds."""
    return int(num_tokens * (1 - ratio))


class MaskedInput(Protocol):
    """A model's config, as far as its masks need it."""

    @property
    def mask(self) -> MaskConfig: ...  # noqa: D102

    @property
    def audio_grid(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def num_audio_tokens(self) -> int: ...  # noqa: D102

    @property
    def num_visual_tokens(self) -> int: ...  # noqa: D102


class Masker(nn.Module):
    """The masks of a pretraining pass; a pass of its own noise and ratios is another call.

    Args:
        config: Its grids and ``mask`` settings are used.
    """

    def __init__(self, config: MaskedInput) -> None:
        super().__init__()
        self.config = config

    def audio(self, noise: Tensor, ratio: float | None = None) -> Mask:
        """The mask of audio tokens.

        Args:
            noise: (B, La) in [0, 1).
            ratio: Share removed; None is the config's.
        """
        self._check(noise, self.config.num_audio_tokens, "audio")
        mask = self.config.mask
        ratio = mask.audio_ratio if ratio is None else ratio
        noise = structured_noise(noise, self.config.audio_grid, ratio, mask.audio_strategy)
        return mask_from_noise(noise, num_kept(self.config.num_audio_tokens, ratio))

    def visual(self, noise: Tensor, ratio: float | None = None) -> Mask:
        """The mask of visual tokens from (B, Lv) noise in [0, 1); ``ratio`` as of `audio`."""
        self._check(noise, self.config.num_visual_tokens, "visual")
        ratio = self.config.mask.visual_ratio if ratio is None else ratio
        return mask_from_noise(noise, num_kept(self.config.num_visual_tokens, ratio))

    def forward(self, noise_audio: Tensor, noise_visual: Tensor) -> tuple[Mask, Mask]:
        """Both masks."""
        return self.audio(noise_audio), self.visual(noise_visual)

    @staticmethod
    def _check(noise: Tensor, num_tokens: int, name: str) -> None:
        if noise.ndim != 2 or noise.shape[1] != num_tokens:
            raise ValueError(
                f"the {name} noise has shape {tuple(noise.shape)}; the model needs (B, {num_tokens})"
            )
