"""Reader processes that cannot deliver: too little shared memory, and none that hang are waited for."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.shards import make_shards
from torch.utils.data import Dataset

from datasets.batch import AVBatch
from datasets.loading import workers
from datasets.loading.config import ClipNeeds, DataConfig
from datasets.loading.loader import TrainShare, evaluation_loader, train_loader
from datasets.loading.sampling import SamplingConfig

NEEDS = ClipNeeds(image_size=32, num_samples=3200)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    return str(make_shards(tmp_path_factory.mktemp("set"), 8, 8, seconds=0.2, frames=1))


def shared_memory(monkeypatch: pytest.MonkeyPatch, size: int, free: int) -> None:
    stat = SimpleNamespace(f_frsize=4096, f_bavail=free // 4096, f_blocks=size // 4096)
    monkeypatch.setattr(workers.os, "statvfs", lambda path: stat)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_batches_in_flight_must_fit_the_shared_memory(
    shards: str, monkeypatch: pytest.MonkeyPatch, mixup: float
):
    config = DataConfig(shards, num_workers=2, prefetch_factor=3)
    share = TrainShare(0, 4, num_steps=1)

    def batches() -> list[AVBatch]:
        return list(train_loader(config, NEEDS, share, SamplingConfig(mixup=mixup)))

    (batch,) = batches()
    size = workers._num_bytes(batch)
    assert size > 4 * (3 * 32 * 32 + 2 * 3200) * (1 + mixup)
    needed = size * (2 * 3 + 2)
    shared_memory(monkeypatch, 10 * needed, needed + 8192)
    assert batches()
    shared_memory(monkeypatch, 10 * needed, needed - 8192)
    with pytest.raises(
        ValueError, match=r"data.num_workers 2 with data.prefetch_factor 3 hold .* MB .*--shm-size"
    ):
        batches()
    # Two processes here: each has room, both together have not.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    shared_memory(monkeypatch, 2 * needed - 8192, 2 * needed - 8192)
    with pytest.raises(ValueError, match=r"2 process\(es\) here"):
        batches()


def test_without_workers_nothing_is_shared(shards: str, monkeypatch: pytest.MonkeyPatch):
    shared_memory(monkeypatch, 0, 0)
    loader = evaluation_loader(DataConfig(shards, num_workers=0), shards, NEEDS, batch_size=4)
    assert len(list(loader)) == 2


class Hangs(Dataset):
    """Gives nothing in a worker, as one whose batch was dropped, or stops it before the second batch."""

    def __init__(self, stops: bool = False) -> None:
        self.parent, self.stops = os.getpid(), stops

    def __getitems__(self, tickets: list) -> list:
        if os.getpid() != self.parent:
            if not self.stops:
                time.sleep(60)
            elif tickets == [2]:
                os.kill(os.getpid(), signal.SIGSTOP)
        return [torch.zeros(1) for _ in tickets]


@pytest.mark.parametrize("asked", [False, True])
def test_readers_that_hang_end_the_run(monkeypatch: pytest.MonkeyPatch, asked: bool):
    monkeypatch.setattr(workers, "_LOOK", 0.1)
    monkeypatch.setattr(workers, "_PATIENCE", 0.3)
    monkeypatch.setattr(workers.STOP_WORD, "asked", lambda: asked)
    config = DataConfig("set", num_workers=1, stall_seconds=60.0 if asked else 0.3)
    loader = workers.make_loader(config, Hangs(), [[1, 2]], lambda items: items)  # type: ignore[arg-type]
    with pytest.raises(workers.LoaderStalledError, match=r"gave no batch for 0 s .*/dev/shm has"):
        next(iter(loader))


def test_a_reader_that_stands_still_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    """The first batch waits in the queue, and its memory can't be had from a process that was stopped."""
    monkeypatch.setattr(workers, "_LOOK", 0.1)
    config = DataConfig("set", num_workers=1, stall_seconds=1.0)
    loader = workers.make_loader(config, Hangs(stops=True), [[1], [2]], torch.stack)  # type: ignore[arg-type]
    with pytest.raises(workers.LoaderStalledError, match="gave no batch for 1 s"):
        list(loader)
    iterator: Any = loader._iterator
    assert not any(worker.is_alive() for worker in iterator._workers)
