"""Batches of clips made from a plan and a reader.

Nothing is seeded here and nothing has to be restored: what a batch holds follows from its step alone,
whatever the number of workers and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datasets.batch import AVBatch, Ticket, collate
from datasets.loading.config import NUM_SAMPLES, ClipNeeds, DataConfig, WeightedSet
from datasets.loading.distinct import DistinctVideos, video_numbers
from datasets.loading.frames import EvenFrames, FrameChoice, all_frames, middle_frame, random_frame
from datasets.loading.joined import JoinedReader, common_labels, training_order
from datasets.loading.plan import EvaluationBatches, EvaluationPlan, SamplePlan, TrainingBatches
from datasets.loading.reader import ClipReader
from datasets.loading.sampling import MixupReader, SamplingConfig, collate_mixed, subset_rows
from datasets.loading.workers import make_loader
from datasets.shards.store import ShardStore

__all__ = [
    "NUM_SAMPLES",
    "ClipLoader",
    "ClipNeeds",
    "DataConfig",
    "EvenFrames",
    "FrameChoice",
    "TrainShare",
    "WeightedSet",
    "all_frames",
    "evaluation_loader",
    "middle_frame",
    "open_store",
    "random_frame",
    "train_loader",
]

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class TrainShare:
    """Which part of the training sequence a process reads.

    Attributes:
        seed: Of the order and of all that is random about a clip.
        global_batch_size: Clips to a step over all ranks and micro-batches.
        num_micro_batches: Micro-batches accumulated to a step.
        rank: This process among ``world_size``.
        world_size: Number of ranks.
        start_step: First step to come; costs nothing.
        num_steps: The step before which it ends; without it there is no end.
        skipped_steps: Steps that are skipped.
    """

    seed: int
    global_batch_size: int
    num_micro_batches: int = 1
    rank: int = 0
    world_size: int = 1
    start_step: int = 0
    num_steps: int | None = None
    skipped_steps: Sequence[int] = ()


@dataclass(frozen=True)
class ClipLoader(Generic[Plan]):
    """Batches of clips, and what they are made from. Iterate a training loader once.

    Attributes:
        batches: The batches, in order.
        reader: Reads single clips.
        plan: Says which clip comes when.
    """

    batches: DataLoader[AVBatch]
    reader: ClipReader | JoinedReader
    plan: Plan

    def __iter__(self) -> Iterator[AVBatch]:
        return iter(self.batches)

    @property
    def num_clips(self) -> int:
        """Clips of the set, or of all sets together."""
        return len(self.reader)

    def read(self, tickets: Sequence[Ticket]) -> AVBatch:
        """Reads single clips as a batch, in this process."""
        items = self.batches.dataset.__getitems__(tickets)  # type: ignore[attr-defined]  # as every reader
        batch: AVBatch = self.batches.collate_fn(items)  # type: ignore[assignment]
        return batch


def open_store(config: DataConfig, location: str) -> ShardStore:
    """The store of the set at ``location`` with the config's cache."""
    return ShardStore(location, config.cache_dir, int(config.cache_gb * 1e9))


def train_loader(
    config: DataConfig, needs: ClipNeeds, share: TrainShare, sampling: SamplingConfig | None = None
) -> ClipLoader[SamplePlan]:
    """A rank's micro-batches from a step on, ``num_micro_batches`` to a step.

    Rank 0 alone looks whether every shard is there with its size; the others, at those that they read.

    Args:
        config: The data.
        needs: What is read of a clip.
        share: Which part of the training sequence.
        sampling: How clips are drawn and mixed; None is each clip once an epoch. With mixup the batches are
            ``MixedBatch``.

    Raises:
        ShardError: A set is missing, damaged, or not what its index says.
        ValueError: Batch size, ranks and micro-batches don't fit, the set is smaller than a global batch, or
            the cache is too small for the shuffle window.
    """
    sets = config.train_sets
    readers = [
        _reader(config, part.path, needs, needs.train_frames, check_shards=share.rank == 0) for part in sets
    ]
    _check_cache(config, readers)
    sampling = sampling or SamplingConfig()
    order = training_order(
        [reader.table for reader in readers],
        [part.weight for part in sets],
        sampling,
        share.seed,
        config.shuffle_window,
    )
    if config.distinct_videos:
        videos = video_numbers([reader.table for reader in readers])
        order = DistinctVideos(order, videos, share.global_batch_size)
    plan = SamplePlan(order, share.seed, share.global_batch_size)
    batches = TrainingBatches(
        plan,
        rank=share.rank,
        world_size=share.world_size,
        num_micro_batches=share.num_micro_batches,
        start_step=share.start_step,
        num_steps=share.num_steps,
        skipped_steps=share.skipped_steps,
    )
    reader = readers[0] if len(readers) == 1 else JoinedReader(readers)
    shape = {"num_samples": needs.num_samples, "num_classes": _num_classes(config, readers)}
    if not sampling.mixup:
        return ClipLoader(make_loader(config, reader, batches, partial(collate, **shape)), reader, plan)
    mixing = MixupReader(reader, _mixup_pool(config, readers, sampling, share.seed), sampling)
    return ClipLoader(make_loader(config, mixing, batches, partial(collate_mixed, **shape)), reader, plan)


def evaluation_loader(
    config: DataConfig,
    location: str | Path,
    needs: ClipNeeds,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    whole_batches: bool = False,
    chosen: NDArray[np.int64] | None = None,
) -> ClipLoader[EvaluationPlan]:
    """A rank's share of a set, or of some rows of it, each clip once over all ranks.

    Ranks may have different numbers of batches, so no collective may run during iteration. A clip that can't
    be read is left out and reported in its batch's ``failures``; a batch of nothing but such clips has
    length 0. Rank 0 alone looks whether every shard is there, as of `train_loader`.

    Args:
        config: The data.
        location: Folder or URL of the set, such as ``config.val``.
        needs: What is read of a clip, with ``held_out_frames``.
        batch_size: Clips to a batch of one rank.
        rank: This process among ``world_size``.
        world_size: Number of ranks.
        whole_batches: See ``EvaluationPlan``.
        chosen: See ``EvaluationPlan``.

    Raises:
        ShardError: The set is missing, damaged, or not what its index says.
        ValueError: Rank or batch size is not possible.
    """
    frames = needs.held_out_frames
    reader = _reader(config, str(location), needs, frames, substitutes=False, check_shards=rank == 0)
    num_rows = len(reader) if chosen is None else len(chosen)
    plan = EvaluationPlan(num_rows, batch_size, rank, world_size, whole_batches, chosen)
    shape = {"num_samples": needs.num_samples, "num_classes": reader.table.num_classes}
    batches = make_loader(config, reader, EvaluationBatches(plan), partial(collate, **shape))
    return ClipLoader(batches, reader, plan)


def _reader(
    config: DataConfig,
    location: str,
    needs: ClipNeeds,
    frames: FrameChoice | None,
    *,
    substitutes: bool = True,
    check_shards: bool,
) -> ClipReader:
    return ClipReader(
        open_store(config, location),
        audio=needs.audio,
        choose_frames=frames,
        image_size=needs.image_size,
        text=needs.text,
        partial=needs.partial,
        substitutes=substitutes,
        keep_truncated=config.keep_truncated,
        check_shards=check_shards,
    )


def _num_classes(config: DataConfig, readers: Sequence[ClipReader]) -> int:
    """Classes of the labels; 0, so that there are none, where several sets do not have the same ones."""
    try:
        labels = common_labels(
            [part.path for part in config.train_sets], [reader.index for reader in readers]
        )
    except ValueError:
        return 0
    return len(labels)


def _mixup_pool(
    config: DataConfig, readers: Sequence[ClipReader], sampling: SamplingConfig, seed: int
) -> NDArray[np.int64]:
    """The rows that may be mixed in: those of every set that is drawn from."""
    if len(readers) == 1:
        return subset_rows(readers[0].table, sampling.max_clips, seed)
    drawn = np.repeat([part.weight > 0 for part in config.train_sets], [len(reader) for reader in readers])
    return np.flatnonzero(drawn)


def _check_cache(config: DataConfig, readers: Sequence[ClipReader]) -> None:
    """A window's shards are read in turn many times: they and the next window's must fit the cache."""
    needed = 0
    for reader in readers:
        shards = [shard.bytes for shard in reader.index.shards if reader.store.is_remote]
        needed += sum(sorted(shards, reverse=True)[: 2 * config.shuffle_window])
    if needed > config.cache_gb * 1e9:
        raise ValueError(
            f"data.cache_gb {config.cache_gb:g} is too small for data.shuffle_window "
            f"{config.shuffle_window}: two windows of shards take {needed / 1e9:.1f} GB; "
            f"raise the one or lower the other"
        )
