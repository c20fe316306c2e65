"""Which labelled clips are drawn how often, and which two are mixed.

Like the plain order these are pure functions of (seed, epoch) and of a place's seed on the table: the same
for every number of ranks and workers, with nothing to restore.

Decisions:
    * Class-balanced sampling draws systematically: one random number an epoch picks all places on the line of
      summed weights, so a clip comes ``floor`` or ``ceil`` of its expected number of times, and equal weights
      give each clip once. Independent draws (as published) leave out a third of the clips by chance.
    * What is drawn is shuffled over the whole epoch. Within windows of shards the many copies of a rare
      class's clip would come in a burst. ``benchmarks/sampling.py`` measures what the less local reading
      costs.
    * A clip's partner and its weight in the mix follow from the place's seed alone, so the reader finds them
      without the plan knowing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datasets.batch import AVBatch, Clip, ReadFailure, Ticket, collate
from datasets.loading.plan import EpochOrder, WindowShuffle, mix, to_seeds
from datasets.shards.table import ClipTable

_SUBSET, _BALANCE, _SHUFFLE, _MIXED, _PARTNER, _PARTNER_SEED, _WEIGHT = range(0xC1A55, 0xC1A55 + 7)


@dataclass(frozen=True)
class SamplingConfig:
    """How clips are sampled from a labelled training set.

    Attributes:
        balanced: Sample clips in proportion to the sum of 1 / count over their classes, so that rare classes
            are seen as often as frequent ones.
        epoch_clips: Places in an epoch; null is the number of clips.
        max_clips: Use only this many clips, the same in every epoch, each class in proportion; null uses all.
        mixup: Share of places that are mixed with another clip.
        mixup_alpha: The first clip's weight is drawn from Beta(α, α); a whole number (published: 10).
    """

    balanced: bool = False
    epoch_clips: int | None = None
    max_clips: int | None = None
    mixup: float = 0.0
    mixup_alpha: int = 10

    def __post_init__(self) -> None:
        for name in ("epoch_clips", "max_clips", "mixup_alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sampling.{name} is {value}: it must be at least 1")
        if not 0 <= self.mixup <= 1:
            raise ValueError(f"sampling.mixup is {self.mixup}: it is a share and must lie in 0 … 1")
        if self.epoch_clips is not None and not self.balanced:
            raise ValueError(
                "sampling.epoch_clips needs sampling.balanced: the plain order has every clip once"
            )

    @property
    def is_plain(self) -> bool:
        """Whether this is nothing but the plain order of all clips."""
        return not self.balanced and self.max_clips is None and not self.mixup


def class_counts(table: ClipTable, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(classes,) clips of each class, among ``rows`` or all."""
    labels = table.label_ids if rows is None else _labels_of(table, rows)[1]
    return np.bincount(labels, minlength=table.num_classes)


def clip_weights(table: ClipTable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(len(rows),) the sum over a clip's classes of 1 / (clips of the class among ``rows``)."""
    places, labels = _labels_of(table, rows)
    counts = np.bincount(labels, minlength=table.num_classes)
    return np.bincount(places, weights=1.0 / counts[labels], minlength=len(rows)).astype(np.float64)


def _labels_of(table: ClipTable, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each label of each of ``rows``: the place in ``rows``, and the class id."""
    first, last = (table.label_offsets[rows + i].astype(np.int64) for i in (0, 1))
    counts = last - first
    places = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return places, table.label_ids[np.repeat(first, counts) + within].astype(np.int64)


def subset_rows(table: ClipTable, max_clips: int | None, seed: int) -> NDArray[np.int64]:
    """The rows in use, ascending: all, or ``max_clips`` of them with each first class's share kept.

    Raises:
        ValueError: There are fewer clips than that.
    """
    rows = np.arange(len(table))
    if max_clips is None:
        return rows
    if max_clips > len(table):
        raise ValueError(f"sampling.max_clips is {max_clips}, but the training set has {len(table)} clips")
    first_class = np.full(len(table), table.num_classes)
    places, labels = _labels_of(table, rows)
    first_class[places[::-1]] = labels[::-1]
    order = np.lexsort((mix(seed, _SUBSET, rows), first_class))
    # Evenly spaced places in an order by class: each class gets its share, to within one clip.
    return np.sort(order[np.arange(max_clips) * len(table) // max_clips])


@dataclass(frozen=True)
class SubsetShuffle:
    """Each clip of a subset once an epoch, shuffled.

    Attributes:
        chosen: The subset's rows.
        seed: Of the order.
    """

    chosen: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.chosen)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The row at each place of ``epoch``."""
        return np.array(self.chosen)[_permutation(len(self), self.seed, epoch)]


@dataclass(frozen=True, eq=False)
class WeightedDraw:
    """Rows drawn in proportion to weights, with replacement and as evenly as can be; then shuffled.

    Attributes:
        chosen: (rows,) the rows drawn from.
        weights: (rows,) their weights, not all 0.
        places: Places in an epoch.
        seed: Of the draw.
    """

    chosen: NDArray[np.int64]
    weights: NDArray[np.float64]
    places: int
    seed: int

    def __post_init__(self) -> None:
        if not self.weights.sum() > 0:
            raise ValueError("sampling.balanced needs labels, and no training clip has any")

    def __len__(self) -> int:
        return self.places

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The row at each place of ``epoch``."""
        # In another order each epoch, or the same neighbours on the line would always share a place.
        line = _permutation(len(self.chosen), self.seed, epoch, _BALANCE)
        ends = np.cumsum(self.weights[line])
        offset = float(mix(self.seed, epoch, _BALANCE)[0]) / 2.0**64
        marks = (np.arange(self.places) + offset) * (ends[-1] / self.places)
        drawn = np.searchsorted(ends, marks, side="right").clip(max=len(line) - 1)
        return self.chosen[line[drawn]][_permutation(self.places, self.seed, epoch)]


def _permutation(count: int, seed: int, epoch: int, stream: int = _SHUFFLE) -> NDArray[np.int64]:
    return np.argsort(mix(seed, epoch, stream, np.arange(count)), kind="stable")


def epoch_order(table: ClipTable, config: SamplingConfig, seed: int, window_shards: int) -> EpochOrder:
    """The order of the clips that ``config`` describes."""
    if config.balanced:
        rows = subset_rows(table, config.max_clips, seed)
        return WeightedDraw(rows, clip_weights(table, rows), config.epoch_clips or len(rows), seed)
    if config.max_clips is not None:
        return SubsetShuffle(tuple(subset_rows(table, config.max_clips, seed).tolist()), seed)
    return WindowShuffle(table.shard_sizes, seed, window_shards)


def mixup_partner(
    ticket: Ticket, pool: NDArray[np.int64], probability: float, alpha: int
) -> tuple[Ticket, float] | None:
    """The clip that is mixed into a place, and the weight λ of the place's own clip.

    λ ~ Beta(α, α) is the median of 2α - 1 uniform numbers.

    Args:
        ticket: The place.
        pool: Rows of which partners are drawn, ascending.
        probability: Share of places that are mixed.
        alpha: α.

    Returns:
        The partner's ticket, with another row and a seed of its own, and λ; None where nothing is mixed in.
    """
    chance = float(mix(ticket.seed, _MIXED)[0]) / 2.0**64
    if chance >= probability or len(pool) < 2:
        return None
    place = int(np.searchsorted(pool, ticket.row))
    step = int(mix(ticket.seed, _PARTNER)[0] % np.uint64(len(pool) - 1))
    row = int(pool[(place + 1 + step) % len(pool)])
    uniform = mix(ticket.seed, _WEIGHT, np.arange(2 * alpha - 1)).astype(np.float64) / 2.0**64
    return Ticket(row, int(to_seeds(mix(ticket.seed, _PARTNER_SEED))[0])), float(np.median(uniform))


@dataclass(frozen=True)
class MixedBatch(AVBatch):
    """A batch whose clips are to be mixed with others, on the device.

    Attributes:
        weights: (B,) float32 share λ of the own clip; 1 where nothing is mixed in.
        partners: The B other clips (the own one again where nothing is mixed in).
    """

    weights: Tensor | None = None
    partners: AVBatch | None = None

    def _map(self, function) -> AVBatch:
        mapped = super()._map(function)
        assert isinstance(mapped, MixedBatch)
        return replace(mapped, partners=None if self.partners is None else self.partners._map(function))


class Reads(Protocol):
    """Reads clips by their tickets."""

    def __len__(self) -> int:
        """Number of clips."""
        ...

    def read(self, ticket: Ticket) -> Clip | ReadFailure:
        """The ticket's clip."""
        ...


class MixupReader(Dataset[tuple[Clip, Clip, float]]):
    """Reads each place's clip and, where one is mixed in, its partner.

    Args:
        reader: Reads the clips; in training, so that bad ones are replaced.
        pool: Rows of which partners are drawn.
        config: Share and weights.
    """

    def __init__(self, reader: Reads, pool: NDArray[np.int64], config: SamplingConfig) -> None:
        self.reader, self.pool, self.config = reader, pool, config

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, tickets: Sequence[Ticket]) -> list[tuple[Clip, Clip, float]]:
        """Reads a batch (what a ``DataLoader`` with a batch sampler calls)."""
        return [self._read(ticket) for ticket in tickets]

    def _read(self, ticket: Ticket) -> tuple[Clip, Clip, float]:
        clip = self.reader.read(ticket)
        assert isinstance(clip, Clip)
        mixed = mixup_partner(ticket, self.pool, self.config.mixup, self.config.mixup_alpha)
        if mixed is None:
            return clip, replace(clip, failures=()), 1.0
        partner = self.reader.read(mixed[0])
        assert isinstance(partner, Clip)
        return clip, partner, mixed[1]


def collate_mixed(
    items: Sequence[tuple[Clip, Clip, float]], num_samples: int, num_classes: int
) -> MixedBatch:
    """Joins clips and their partners into a batch; arguments as of `datasets.batch.collate`."""
    own: list[Clip | ReadFailure] = [item[0] for item in items]
    partners = collate([item[1] for item in items], num_samples, num_classes)
    batch = collate(own, num_samples, num_classes)
    fields: dict[str, Any] = vars(batch) | {"failures": batch.failures + partners.failures}
    weights = torch.tensor([item[2] for item in items], dtype=torch.float32)
    return MixedBatch(**fields, weights=weights, partners=partners)
