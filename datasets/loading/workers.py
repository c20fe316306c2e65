"""Reader processes: what they need, how they begin, when they end, and what is done if they hang.

Batches come from them through shared memory. A worker that finds none left drops its batch and says so where nobody
notices, and PyTorch's loader waits for that batch forever: containers often have 64 MB.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.batch import AVBatch
from datasets.loading.config import DataConfig

_SHARED_MEMORY = Path("/dev/shm")
#: Seconds between looks at whether to go on waiting for a batch.
_LOOK = 2.0
#: Seconds that a process which was asked to stop goes on waiting for a batch.
_PATIENCE = 30.0


class LoaderStalledError(RuntimeError):
    """The reader processes make no progress."""


class StopWord:
    """Whether this process was asked to stop; the program puts its own answer in place of "no"."""

    def asked(self) -> bool:
        """The answer."""
        return False


STOP_WORD = StopWord()


class _WatchedLoader(DataLoader[Any]):
    """A ``DataLoader`` that checks the memory its workers share, and does not wait for them forever.

    Its workers don't inherit garbage: FFmpeg's threads live until their decoder is collected, and a worker that is
    forked before that and then collects its copy waits forever for threads, which a fork does not copy.
    """

    stall_seconds = 300.0

    def __iter__(self) -> Any:
        if not self.num_workers:
            return super().__iter__()
        _check_shared_memory(self)
        gc.collect()
        batches: Any = super().__iter__()
        return self._watched(batches, batches._workers)

    def _watched(self, batches: Iterator[AVBatch], workers: Sequence[BaseProcess]) -> Iterator[AVBatch]:
        with _Patience(workers, self.stall_seconds) as patience:
            while True:
                try:
                    with patience.waiting():
                        batch = next(batches)
                except StopIteration:
                    return
                except (RuntimeError, OSError, EOFError) as error:
                    if patience.ended is None:
                        raise
                    raise LoaderStalledError(
                        f"the reader processes gave no batch for {patience.ended:.0f} s (stall_seconds is "
                        f"{self.stall_seconds:g}): the storage hangs, or shared memory is used up "
                        f"({_shared_memory()}); their own errors stand above. num_workers=0 reads without such "
                        "processes"
                    ) from error
                yield batch


class _Patience:
    """Ends reader processes that are waited for too long, from a thread of its own; a context manager.

    The waiting thread itself can't give up: it asks a worker for the memory of each tensor, and without a limit.

    Args:
        workers: The processes.
        stall_seconds: How long one batch is waited for.

    Attributes:
        ended: After how many seconds they were ended; None as long as they were not.
    """

    def __init__(self, workers: Sequence[BaseProcess], stall_seconds: float) -> None:
        self.ended: float | None = None
        self._workers, self._stall_seconds = workers, stall_seconds
        self._current: object = None  # another one for each batch that is waited for
        self._closed = threading.Event()

    def __enter__(self) -> _Patience:
        threading.Thread(target=self._look, name="loader watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for a batch."""
        self._current = object()
        try:
            yield
        finally:
            self._current = None

    def _look(self) -> None:
        period = min(_LOOK, self._stall_seconds)
        seen, waited = None, 0.0
        while not self._closed.wait(period):
            current = self._current
            if current is None or current is not seen:
                seen, waited = current, 0.0
                continue
            waited += period  # looks are counted: a process that stood still itself did not wait for anybody
            if waited >= (min(_PATIENCE, self._stall_seconds) if STOP_WORD.asked() else self._stall_seconds):
                self.ended = waited
                for worker in self._workers:
                    worker.kill()  # which a stopped process heeds too
                return


def _check_shared_memory(loader: DataLoader[Any]) -> None:
    """Raises ``ValueError`` where the batches in flight do not fit the shared memory."""
    tickets = next(iter(loader.batch_sampler or ()), None)
    if not tickets or not _SHARED_MEMORY.is_dir():
        return
    items = loader.dataset.__getitems__(tickets[:1])  # type: ignore[attr-defined]  # as every reader
    in_flight = loader.num_workers * (loader.prefetch_factor or 1) + 2  # one in use, one on its way
    needed = in_flight * len(tickets) * _num_bytes(loader.collate_fn(items))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    state = os.statvfs(_SHARED_MEMORY)
    if needed > state.f_bavail * state.f_frsize or needed * ranks > state.f_blocks * state.f_frsize:
        raise ValueError(
            f"data.num_workers {loader.num_workers} with data.prefetch_factor {loader.prefetch_factor} hold "
            f"{needed * ranks / 1e6:.0f} MB of batches in shared memory ({ranks} process(es) here), and "
            f"{_shared_memory()}: lower the one or the other, or enlarge it (docker run --shm-size=8g, or a larger "
            f"emptyDir of medium Memory in Kubernetes)"
        )


def _num_bytes(value: object) -> int:
    """Of the tensors in a batch, or in a batch within it."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_num_bytes, vars(value).values())) if is_dataclass(value) else 0


def _shared_memory() -> str:
    state = os.statvfs(_SHARED_MEMORY)
    free, size = state.f_bavail * state.f_frsize / 1e6, state.f_blocks * state.f_frsize / 1e6
    return f"{_SHARED_MEMORY} has {free:.0f} of {size:.0f} MB free"


def make_loader(
    config: DataConfig, reader: Dataset[Any], batches: Sampler[Any], collate_fn: Callable[..., AVBatch]
) -> DataLoader[AVBatch]:
    """A loader of ``batches``, with as many workers as ``config`` says."""
    workers = config.num_workers
    loader = _WatchedLoader(
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
    loader.stall_seconds = config.stall_seconds
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
