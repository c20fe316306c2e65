"""Several training sets as one: a reader of all their clips, and an order in which each has its share.

Rows of the second set come after those of the first, and so on. Each set goes on through epochs of its own, whatever
its weight: all of its clips come before one comes again.

Decisions:
    * An epoch of all sets together has as many places as they have clips, and each set the whole number of them
      that comes nearest to its share. The epoch is a pure function of (seed, epoch), so a plan over several sets is
      the same for every number of ranks and is resumed exactly, like one over a single set.
    * The k-th of a set's n clips in an epoch comes at a random place of the k-th n-th of the epoch, so that every
      stretch of an epoch, each batch too, has nearly the shares of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.loading.plan import EpochOrder, mix, sequence_rows, to_seeds
from datasets.loading.reader import ClipReader
from datasets.loading.sampling import SamplingConfig, epoch_order
from datasets.shards.manifest import Label, ShardIndex
from datasets.shards.names import public
from datasets.shards.table import ClipTable

_SET, _PLACE = range(0x5E75, 0x5E75 + 2)


class JoinedReader(Dataset[Clip | ReadFailure]):
    """The clips of several sets; a bad clip is replaced by one of its own set.

    Args:
        readers: One for each set, in order.
    """

    def __init__(self, readers: Sequence[ClipReader]) -> None:
        self.readers = tuple(readers)
        self.first_rows = np.cumsum([0, *map(len, readers)])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def __getitems__(self, tickets: Sequence[Ticket]) -> list[Clip | ReadFailure]:
        """Reads a batch (what a ``DataLoader`` with a batch sampler calls)."""
        return [self.read(ticket) for ticket in tickets]

    def read(self, ticket: Ticket) -> Clip | ReadFailure:
        """See ``ClipReader.read``; rows count over all sets."""
        part = int(np.searchsorted(self.first_rows, ticket.row, side="right")) - 1
        first = int(self.first_rows[part])
        clip = self.readers[part].read(ticket._replace(row=ticket.row - first))
        return replace(clip, row=clip.row + first) if isinstance(clip, Clip) else clip


@dataclass(frozen=True, eq=False)
class WeightedOrder:
    """An order over several sets in which each has its share of the places.

    Attributes:
        orders: Of each set that is drawn from, in its own rows.
        first_rows: Its first row among those of all sets.
        counts: Its places in an epoch.
        seed: Of how they are interleaved.
    """

    orders: tuple[EpochOrder, ...]
    first_rows: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return sum(self.counts)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The row at each place of ``epoch``."""
        parts, places = [], []
        for number, (order, first, count) in enumerate(
            zip(self.orders, self.first_rows, self.counts, strict=True)
        ):
            parts.append(first + sequence_rows(order.rows, len(order), epoch * count, count))
            steps = np.arange(count)
            within = mix(self.seed, _PLACE, epoch, number, steps).astype(np.float64) / 2.0**64
            places.append((steps + within) / count)
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]


def training_order(
    tables: Sequence[ClipTable],
    weights: Sequence[float],
    sampling: SamplingConfig,
    seed: int,
    window_shards: int,
) -> EpochOrder:
    """The order of one training set, or of several with their shares of it.

    Args:
        tables: Of the sets.
        weights: Their weights, not all 0.
        sampling: How clips of a set are drawn; of several, each set's by itself.
        seed: Of the order.
        window_shards: Shards among which clips are shuffled at a time.

    Raises:
        ValueError: ``sampling.max_clips`` of several sets; or a set's share is less than one clip an epoch.
    """
    if len(tables) == 1:
        return epoch_order(tables[0], sampling, seed, window_shards)
    if sampling.max_clips is not None:
        raise ValueError("sampling.max_clips takes a part of one training set; data.train names several")
    drawn = [number for number, weight in enumerate(weights) if weight > 0]
    each = replace(sampling, epoch_clips=None)
    firsts = np.cumsum([0, *map(len, tables)]).tolist()
    orders = [
        epoch_order(tables[i], each, int(to_seeds(mix(seed, _SET, i))[0]), window_shards) for i in drawn
    ]
    places = sampling.epoch_clips or sum(map(len, orders))
    counts = _shares([weights[i] for i in drawn], places)
    for i, count in zip(drawn, counts, strict=True):
        if not count:
            raise ValueError(
                f"data.train: with weight {weights[i]:g} the set {tables[i].path.parent} would have none of the "
                f"{places} places of an epoch; raise its weight, or leave it out"
            )
    return WeightedOrder(tuple(orders), tuple(firsts[i] for i in drawn), tuple(counts), seed)


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to ``total`` and come nearest to being in proportion to ``weights``."""
    exact = np.array(weights) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts.tolist()


def common_labels(locations: Sequence[str], indices: Sequence[ShardIndex]) -> tuple[Label, ...]:
    """The vocabulary that all sets share, with the clips of all of them counted.

    Raises:
        ValueError: Two of them have different ones; names the sets and the first class that differs.
    """
    names = [[(label.name, label.mid) for label in index.labels] for index in indices]
    for location, other in zip(locations[1:], names[1:], strict=True):
        if other != names[0]:
            raise ValueError(
                f"{public(locations[0])} and {public(location)} have different classes "
                f"({_difference(names[0], other)}): prepare both with the same --classes, "
                "such as the index.json of one of them"
            )
    counts = [sum(index.labels[i].count for index in indices) for i in range(len(names[0]))]
    return tuple(replace(label, count=count) for label, count in zip(indices[0].labels, counts, strict=True))


def _difference(one: Sequence[tuple[str, str | None]], other: Sequence[tuple[str, str | None]]) -> str:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return f"class {place} is {a[0]!r} in the one and {b[0]!r} in the other"
    return f"{len(one)} classes and {len(other)}"
