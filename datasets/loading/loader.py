"""PyTorch data loaders of ``AVBatch`` made from a plan and a reader, and the settings of the data.

Nothing is seeded here and nothing has to be restored: what a batch holds follows from its step alone,
whatever the number of workers and ranks.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.batch import AVBatch, collate
from datasets.loading.frames import EvenFrames, FrameChoice, all_frames, middle_frame, random_frame
from datasets.loading.plan import EvaluationBatches, EvaluationPlan, SamplePlan, TrainingBatches
from datasets.loading.reader import ClipReader
from datasets.loading.sampling import MixupReader, SamplingConfig, collate_mixed, epoch_order, subset_rows
from datasets.shards.store import ShardStore, is_url

__all__ = [
    "DataConfig",
    "EvenFrames",
    "all_frames",
    "evaluation_loader",
    "middle_frame",
    "open_store",
    "random_frame",
    "train_loader",
]

NUM_SAMPLES = (1024 - 1) * 160 + 400
"""Waveform samples that give 1024 log-mel frames (25 ms windows every 10 ms at 16 kHz), about 10 s."""


@dataclass(frozen=True)
class DataConfig:
    """Where the clips come from and how they are read.

    Attributes:
        train: Folder or URL of the training set's shards.
        val: The same of the held-out set; None for none.
        num_workers: Reader processes of each rank; 0 reads in the training process.
        prefetch_factor: Batches that each worker reads ahead.
        shuffle_window: Shards among which clips are shuffled at a time.
        cache_dir: Folder for shards fetched from URLs; None where all are local.
        cache_gb: Upper bound of that folder in 10^9 bytes.
        max_bad_fraction: Share of clips that may turn out unreadable before the run stops.
    """

    train: str
    val: str | None = None
    num_workers: int = 4
    prefetch_factor: int = 4
    shuffle_window: int = 16
    cache_dir: str | None = None
    cache_gb: float = 50.0
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("data.train must name the folder or URL of the training set")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must be 0 or more, not {self.num_workers}")
        for name in ("prefetch_factor", "shuffle_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if not self.cache_gb > 0:
            raise ValueError(f"data.cache_gb must be above 0, not {self.cache_gb}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must be within 0 and 1, not {self.max_bad_fraction}")
        remote = [location for location in (self.train, self.val) if location and is_url(location)]
        if remote and self.cache_dir is None:
            raise ValueError(f"data.cache_dir must name a folder to keep the shards of {remote[0]} in")


def open_store(config: DataConfig, location: str) -> ShardStore:
    """The store of the set at ``location`` with the config's cache."""
    return ShardStore(location, config.cache_dir, int(config.cache_gb * 1e9))


def train_loader(
    config: DataConfig,
    *,
    seed: int,
    global_batch_size: int,
    num_micro_batches: int = 1,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    num_steps: int | None = None,
    skipped_steps: Sequence[int] = (),
    audio: bool = True,
    choose_frames: FrameChoice | None = random_frame,
    image_size: int = 224,
    num_samples: int = NUM_SAMPLES,
    sampling: SamplingConfig | None = None,
) -> DataLoader[AVBatch]:
    """A rank's micro-batches from ``start_step`` on, ``num_micro_batches`` to a step.

    ``loader.dataset`` is the ``ClipReader`` (its ``index`` has vocabulary and statistics, its ``table`` the
    clips), ``loader.batch_sampler.plan`` the ``SamplePlan``. Iterate it once; to go to another step make
    another.

    Args:
        config: The data.
        seed: Of the order and of all that is random about a clip.
        global_batch_size: Clips to a step over all ranks and micro-batches.
        num_micro_batches: Micro-batches accumulated to a step.
        rank: This process among ``world_size``.
        world_size: Number of ranks.
        start_step: First step to come; costs nothing.
        num_steps: The step before which it ends; without it there is no end.
        skipped_steps: Steps that are passed over.
        audio: Read the sound.
        choose_frames: Which frames to read; None for none.
        image_size: Side of the frames in pixels.
        num_samples: Length to which waveforms are cut or padded.
        sampling: How clips are drawn and mixed; None is each clip once an epoch. With mixup the batches are
            ``MixedBatch`` and ``loader.dataset.reader`` is the ``ClipReader``.

    Raises:
        ShardError: The set is missing, damaged, or not what its index says.
        ValueError: Batch size, ranks and micro-batches don't fit, the set is smaller than a global batch, or
            the cache is too small for the shuffle window.
    """
    store = open_store(config, config.train)
    reader = ClipReader(store, audio=audio, choose_frames=choose_frames, image_size=image_size)
    _check_cache(config, reader)
    sampling = sampling or SamplingConfig()
    order = epoch_order(reader.table, sampling, seed, config.shuffle_window)
    batches = TrainingBatches(
        SamplePlan(order, seed, global_batch_size),
        rank=rank,
        world_size=world_size,
        num_micro_batches=num_micro_batches,
        start_step=start_step,
        num_steps=num_steps,
        skipped_steps=skipped_steps,
    )
    if sampling.mixup:
        pool = subset_rows(reader.table, sampling.max_clips, seed)
        mixing = MixupReader(reader, pool, sampling)
        return _loader(config, mixing, batches, partial(collate_mixed, **_shape(reader, num_samples)))
    return _loader(config, reader, batches, partial(collate, **_shape(reader, num_samples)))


def evaluation_loader(
    config: DataConfig,
    location: str | Path,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    audio: bool = True,
    choose_frames: FrameChoice | None = middle_frame,
    image_size: int = 224,
    num_samples: int = NUM_SAMPLES,
    whole_batches: bool = False,
    chosen: NDArray[np.int64] | None = None,
) -> DataLoader[AVBatch]:
    """A rank's share of a set, or of some rows of it, each clip once over all ranks.

    Ranks may have different numbers of batches, so no collective may run during iteration. A clip that can't
    be read is left out and reported in its batch's ``failures``; a batch of nothing but such clips has
    length 0.

    Args:
        config: The data.
        location: Folder or URL of the set, such as ``config.val``.
        batch_size: Clips to a batch of one rank.
        rank: This process among ``world_size``.
        world_size: Number of ranks.
        audio: Read the sound.
        choose_frames: Which frames to read; None for none.
        image_size: Side of the frames in pixels.
        num_samples: Length to which waveforms are cut or padded.
        whole_batches: See ``EvaluationPlan``.
        chosen: See ``EvaluationPlan``.

    Raises:
        ShardError: The set is missing, damaged, or not what its index says.
        ValueError: Rank or batch size is not possible.
    """
    reader = ClipReader(
        open_store(config, str(location)),
        audio=audio,
        choose_frames=choose_frames,
        image_size=image_size,
        substitutes=False,
    )
    num_rows = len(reader) if chosen is None else len(chosen)
    plan = EvaluationPlan(num_rows, batch_size, rank, world_size, whole_batches, chosen)
    return _loader(config, reader, EvaluationBatches(plan), partial(collate, **_shape(reader, num_samples)))


def _shape(reader: ClipReader, num_samples: int) -> dict[str, int]:
    return {"num_samples": num_samples, "num_classes": reader.table.num_classes}


class _Loader(DataLoader[Any]):
    """A ``DataLoader`` whose workers don't inherit garbage.

    FFmpeg's threads live until their decoder is collected. A worker that is forked before that and then
    collects its copy waits for ever for threads which no fork copies.
    """

    def __iter__(self) -> Any:
        if self.num_workers:
            gc.collect()
        return super().__iter__()


def _loader(
    config: DataConfig, reader: Dataset[Any], batches: Sampler[Any], collate_fn: Callable[..., AVBatch]
) -> DataLoader[AVBatch]:
    workers = config.num_workers
    loader = _Loader(
        reader,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=config.prefetch_factor if workers else None,
        persistent_workers=bool(workers),
        worker_init_fn=_heed_the_trainer_alone if workers else None,
        generator=torch.Generator(),  # of its own: else every iterator draws from torch's global one
    )
    return cast(DataLoader[AVBatch], loader)


def _heed_the_trainer_alone(worker: int) -> None:
    """Keeps a reader process working when a cluster warns every process of a job.

    SLURM may send SIGUSR1 and SIGTERM to readers too; they must go on until the trainer has finished its step and
    ends them itself.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parents_word, daemon=True).start()


def _wait_for_parents_word() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _check_cache(config: DataConfig, reader: ClipReader) -> None:
    """A window's shards are read in turn many times: they and the next window's must fit the cache."""
    sizes = sorted((s.bytes for s in reader.index.shards if is_url(reader.store.url(s.name))), reverse=True)
    needed = sum(sizes[: 2 * config.shuffle_window])
    if needed > config.cache_gb * 1e9:
        raise ValueError(
            f"data.cache_gb {config.cache_gb:g} is too small for data.shuffle_window "
            f"{config.shuffle_window}: two windows of shards take {needed / 1e9:.1f} GB; "
            f"raise the one or lower the other"
        )
