"""Reader processes: how they begin, and when they end."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.batch import AVBatch
from datasets.loading.config import DataConfig


class _CleanForkLoader(DataLoader[Any]):
    """A ``DataLoader`` whose workers don't inherit garbage.

    FFmpeg's threads live until their decoder is collected. A worker that is forked before that and then
    collects its copy waits for ever for threads which no fork copies.
    """

    def __iter__(self) -> Any:
        if self.num_workers:
            gc.collect()
        return super().__iter__()


def make_loader(
    config: DataConfig, reader: Dataset[Any], batches: Sampler[Any], collate_fn: Callable[..., AVBatch]
) -> DataLoader[AVBatch]:
    """A loader of ``batches``, with as many workers as ``config`` says."""
    workers = config.num_workers
    loader = _CleanForkLoader(
        reader,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=config.prefetch_factor if workers else None,
        persistent_workers=bool(workers),
        worker_init_fn=_ignore_cluster_signals if workers else None,
        generator=torch.Generator(),  # of its own: else every iterator draws from torch's global one
    )
    return cast(DataLoader[AVBatch], loader)


def _ignore_cluster_signals(worker: int) -> None:
    """Keeps a reader process working when a cluster warns every process of a job.

    SLURM may send SIGUSR1 and SIGTERM to readers too; they must go on until the trainer has finished its step and
    ends them itself.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()


def _exit_on_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
