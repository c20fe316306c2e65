"""Which clip comes when: one order for every number of ranks and workers.

The training sequence is infinite: the orders of epoch 0, 1, 2, ... one after the other. Global batch k is
its k-th slice, so a batch may straddle two epochs, each clip comes exactly once an epoch, and nothing is
dropped. A step's global batch is cut into micro-batches and each of these into the ranks' parts, in order: a
micro-batch is the same clips for every number of ranks. The state of a run is one number, its step.

Decisions:
    * All is a pure function of (seed, place), through a hash whose values no library version can change.
    * What an epoch's order is stands apart (``EpochOrder``): other ways of sampling are other functions of
      the table.
    * A place's seed, from which masks, frame choice and augmentation derive, depends on the place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from datasets.batch import Ticket

_EVALUATION_SEED = 0x5EED_E7A1
_WINDOW_BITS = 24  # of a sort key; the other 40 are the hash


def mix(*parts: int | NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes integers and integer arrays (broadcast together) to uint64.

    Each part is added to the state, which then goes through the finalizer of SplitMix64 (Steele, Lea and
    Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        value = np.asarray(part & 0xFFFF_FFFF_FFFF_FFFF if isinstance(part, int) else part).astype(np.uint64)
        state = state + value + np.uint64(0x9E37_79B9_7F4A_7C15)  # wraps, as it should
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
        state = state ^ (state >> np.uint64(31))
    return state


def to_seeds(hashed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Hash values as seeds, ``0 <= seed < 2**63``."""
    return (hashed >> np.uint64(1)).astype(np.int64)


def substitute_row(seed: int, attempt: int, num_rows: int) -> int:
    """The clip that takes the place of one that can't be read.

    Args:
        seed: The ticket's seed.
        attempt: 1 for the first substitute, 2 for the one that takes over if that is bad too, ...
        num_rows: Clips in the set.
    """
    return int(mix(seed, attempt)[0] % np.uint64(num_rows))


class EpochOrder(Protocol):
    """The rows of an epoch in order: a pure function of the epoch. Hashable, so that orders can be cached."""

    def __len__(self) -> int:
        """Number of places in every epoch."""
        ...

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The row at each place of ``epoch``."""
        ...


@dataclass(frozen=True)
class WindowShuffle:
    """Each clip once: shards permuted, clips shuffled within windows of consecutive shards.

    So reading stays local, and an order of two million clips takes a third of a second.

    Attributes:
        shard_sizes: Clips of each shard.
        seed: Of the order.
        window_shards: Shards to a window; at least as many as there are shards means a full shuffle.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    window_shards: int = 16

    def __post_init__(self) -> None:
        if self.window_shards < 1:
            raise ValueError(f"shuffle_window must be at least 1 shard, not {self.window_shards}")
        if not sum(self.shard_sizes):
            raise ValueError("there are no clips to shuffle")

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The row at each place of ``epoch``."""
        sizes = np.array(self.shard_sizes)
        shard_order = np.argsort(mix(self.seed, epoch, np.arange(len(sizes))), kind="stable")
        window_of_shard = np.empty(len(sizes), np.uint64)
        window_of_shard[shard_order] = np.arange(len(sizes)) // self.window_shards
        # One sort does it: the window in the high bits, a hash of the row in the low ones.
        hashed = mix(self.seed, epoch, np.arange(len(self)) + len(sizes)) >> np.uint64(_WINDOW_BITS)
        keys = (np.repeat(window_of_shard, sizes) << np.uint64(64 - _WINDOW_BITS)) | hashed
        return np.argsort(keys, kind="stable")


@lru_cache(maxsize=4)  # a batch may straddle two epochs, of a training and an evaluation set
def _rows(order: EpochOrder, epoch: int) -> NDArray[np.int64]:
    return order.rows(epoch)


def sequence_rows(
    epoch_rows: Callable[[int], NDArray[np.int64]], length: int, first: int, count: int
) -> NDArray[np.int64]:
    """Rows at the places ``first ... first + count - 1`` of epochs that follow each other.

    Args:
        epoch_rows: The rows of an epoch.
        length: Places in each epoch.
        first: The first place, from 0.
        count: Number of places.
    """
    rows, end = [np.empty(0, np.int64)], first + count
    for epoch in range(first // length, -(-end // length)):
        begin = epoch * length
        rows.append(epoch_rows(epoch)[max(first - begin, 0) : end - begin])
    return np.concatenate(rows)


@dataclass(frozen=True)
class SamplePlan:
    """The training sequence and how ranks share it.

    Attributes:
        order: The order of each epoch.
        seed: The run's seed, from which those of all places derive.
        global_batch_size: Clips to a step, over all ranks and micro-batches.
    """

    order: EpochOrder
    seed: int
    global_batch_size: int

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size must be at least 1, not {self.global_batch_size}")
        if len(self.order) < self.global_batch_size:
            raise ValueError(
                f"the set has {len(self.order)} clips, fewer than one global batch of "
                f"{self.global_batch_size}; lower global_batch_size or use more data"
            )

    @property
    def steps_per_epoch(self) -> float:
        """Steps to an epoch; rarely whole."""
        return len(self.order) / self.global_batch_size

    def tickets(self, first: int, count: int) -> list[Ticket]:
        """The places ``first ... first + count - 1`` of the sequence."""
        rows = sequence_rows(partial(_rows, self.order), len(self.order), first, count)
        seeds = to_seeds(mix(self.seed, np.arange(first, first + count)))
        return [Ticket(row, seed) for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True)]

    def global_batch(self, step: int) -> list[Ticket]:
        """The clips of a step, over all ranks."""
        return self.tickets(step * self.global_batch_size, self.global_batch_size)

    def check_split(self, num_micro_batches: int, world_size: int) -> int:
        """Returns the clips to a rank's micro-batch.

        Raises:
            ValueError: The global batch can't be cut evenly; names the three numbers.
        """
        parts = num_micro_batches * world_size
        if parts < 1 or self.global_batch_size % parts:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide by {num_micro_batches} "
                f"accumulated micro-batches times {world_size} ranks"
            )
        return self.global_batch_size // parts

    def micro_batch(
        self, step: int, micro: int, num_micro_batches: int, rank: int, world_size: int
    ) -> list[Ticket]:
        """A rank's part of micro-batch ``micro`` of a step."""
        size = self.check_split(num_micro_batches, world_size)
        return self.tickets(step * self.global_batch_size + (micro * world_size + rank) * size, size)


class TrainingBatches(Sampler[list[Ticket]]):
    """A rank's micro-batches from a step on, in order: ``num_micro_batches`` to a step.

    Args:
        plan: The sequence.
        rank: This process among ``world_size``.
        world_size: Number of ranks.
        num_micro_batches: Micro-batches accumulated to a step.
        start_step: First step to come.
        num_steps: First step not to come; without it there is no end.
        skipped_steps: Steps that are skipped.
    """

    def __init__(
        self,
        plan: SamplePlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_micro_batches: int = 1,
        start_step: int = 0,
        num_steps: int | None = None,
        skipped_steps: Sequence[int] = (),
    ) -> None:
        check_rank(rank, world_size)
        plan.check_split(num_micro_batches, world_size)
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self.num_micro_batches = num_micro_batches
        self.start_step = start_step
        self.num_steps = num_steps
        self.skipped_steps = frozenset(skipped_steps)

    def __iter__(self) -> Iterator[list[Ticket]]:
        step = self.start_step
        while self.num_steps is None or step < self.num_steps:
            if step not in self.skipped_steps:
                for micro in range(self.num_micro_batches):
                    yield self.plan.micro_batch(
                        step, micro, self.num_micro_batches, self.rank, self.world_size
                    )
            step += 1


def check_rank(rank: int, world_size: int) -> None:
    """Raises ``ValueError`` unless ``0 <= rank < world_size``."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} ranks")


@dataclass(frozen=True)
class EvaluationPlan:
    """Every row exactly once over all ranks.

    A rank has a run of consecutive rows, so that it reads its own shards; ranks may differ by one row.

    Attributes:
        num_rows: Clips to visit.
        batch_size: Clips to a batch of one rank.
        rank: This process among ``world_size``.
        world_size: Number of ranks.
        chosen: The rows to visit; None for ``0 … num_rows - 1``.
        whole_batches: Ranks share the batches of a single process instead of rows, and may differ by one
            batch. A clip then has the same neighbours for every number of ranks, so its numbers, whose last
            bits depend on the shape of a batch, are the same too.
    """

    num_rows: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    whole_batches: bool = False
    chosen: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank, self.world_size)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")

    @property
    def places(self) -> range:
        """This rank's part of ``0 … num_rows - 1``."""
        unit = self.batch_size if self.whole_batches else 1
        parts = -(-self.num_rows // unit)
        first, last = (parts * part // self.world_size * unit for part in (self.rank, self.rank + 1))
        return range(min(first, self.num_rows), min(last, self.num_rows))

    def __len__(self) -> int:
        """Number of this rank's batches."""
        return -(-len(self.places) // self.batch_size)

    def batch(self, number: int) -> list[Ticket]:
        """This rank's batch ``number``; the last may be smaller. A row's seed depends on the row alone."""
        places = self.places[number * self.batch_size : (number + 1) * self.batch_size]
        rows = np.array(places, np.int64)
        if self.chosen is not None:
            rows = self.chosen[rows]
        seeds = to_seeds(mix(_EVALUATION_SEED, rows))
        return [Ticket(row, seed) for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True)]


class EvaluationBatches(Sampler[list[Ticket]]):
    """A rank's batches of an ``EvaluationPlan``."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Ticket]]:
        return (self.plan.batch(number) for number in range(len(self.plan)))
