"""A training whose checkpoints are written behind its steps, one of them held up on the last rank."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from support.mishaps import Spoilt
from support.training import make_trainer, micro_batches, small_objective

import engine.checkpoints.saving as saving
from datasets.batch import AVBatch
from engine.checkpoints.folder import CheckpointError, find_checkpoints
from engine.checkpoints.saving import CheckpointWriter
from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.world import World, distributed
from engine.training.train_config import TrainConfig


def runs_seen(runs: list[dict[str, Any]]) -> list[dict[int, list[int]]]:
    """For each run what `_fit` saw."""
    with distributed() as world:
        return [_fit(world, **run) for run in runs]


def _fit(world: World, run: str, zero_stage: Any, waits: bool) -> dict[int, list[int]]:
    """The checkpoints that are found after each step of a run with checkpoints at 0, 4 and 7.

    The last rank begins to write that of step 4 before step 7 only, or else every checkpoint is waited for.
    """
    parallel = ParallelConfig(global_batch_size=12, zero_stage=zero_stage, precision="fp32")
    train = TrainConfig(steps=7, log_interval=1, checkpoint_interval=4, keep_checkpoints=3, parallel=parallel)
    seen: dict[int, list[int]] = {}
    go_on, begin, write = threading.Event(), CheckpointWriter.begin, saving._write

    def loader(start_step: int, skipped: Collection[int]) -> Iterator[AVBatch]:
        for step, batch in enumerate(micro_batches(world.rank, world.size, parallel, start_step, skipped)):
            seen[step] = [checkpoint.state.step for checkpoint in find_checkpoints(Path(run))]
            if step == 6:
                go_on.set()
            yield batch

    def late(folder: Path, *parts: Any) -> Any:
        if folder.name.endswith("4") and world.rank == world.size - 1 and not waits:
            assert go_on.wait(60)
        return write(folder, *parts)

    def at_once(writer: CheckpointWriter, *arguments: Any) -> None:
        begin(writer, *arguments)
        writer.finish()

    changed = patch.object(CheckpointWriter, "begin", at_once if waits else begin)
    with patch.object(saving, "_write", late), changed:
        assert make_trainer(world, Path(run), train, loader=loader).fit()
    return seen


def slow_disks(run: str) -> dict[str, Any]:
    """A run whose last rank can't sync its part of the checkpoint of step 4 before a bad step leads back.

    Where its batches ``began``, which checkpoints were ``seen`` in the bad step, which were ``left`` at the end, and
    where it is ``resumed``.
    """
    bad = 5
    began: list[int] = []
    seen: list[int] = []
    go_on, sync, finish = threading.Event(), os.fsync, CheckpointWriter.finish

    def slow_sync(descriptor: int) -> None:
        if ".writing_step_00000004/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            assert go_on.wait(60)
        sync(descriptor)

    def finish_slowly(writer: CheckpointWriter) -> None:
        if writer._begun and writer._begun.state.step == 4:
            threading.Timer(0.3, go_on.set).start()
        finish(writer)

    with distributed() as world, ExitStack() as slow:
        if world.rank == world.size - 1:
            slow.enter_context(patch.object(os, "fsync", slow_sync))
            slow.enter_context(patch.object(CheckpointWriter, "finish", finish_slowly))
        parallel = ParallelConfig(global_batch_size=12, zero_stage=1, precision="fp32")
        train = TrainConfig(
            steps=7, log_interval=1, checkpoint_interval=4, keep_checkpoints=3, parallel=parallel
        )

        def loader(start_step: int, skipped: Collection[int]) -> Iterator[AVBatch]:
            began.append(start_step)
            batches = micro_batches(world.rank, world.size, parallel, start_step, skipped)
            for step, batch in enumerate(batches, start=start_step):
                if len(began) == 1 and step == bad:
                    seen.extend(checkpoint.state.step for checkpoint in find_checkpoints(Path(run)))
                yield batch

        base = small_objective()
        objective = Spoilt(base.model, base.audio_front_end.config, base.config)
        trainer = make_trainer(world, Path(run), train, objective=objective, loader=loader)
        objective.steps, objective.trainer, objective.world = [bad], trainer, world
        assert trainer.fit()
        left = [checkpoint.state.step for checkpoint in find_checkpoints(Path(run))]
        resumed = make_trainer(world, Path(run), replace(train, steps=9))
        resumed.stop.close()
        resumed.log.close()
        return {"began": began, "seen": seen, "left": left, "resumed": resumed.step}


def full_disk(run: str) -> str:
    """What each rank says where the last one can't write its part of a checkpoint."""
    with distributed() as world:
        if world.rank == world.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        parallel = ParallelConfig(global_batch_size=12, zero_stage=1, precision="fp32")
        train = TrainConfig(steps=2, log_interval=1, checkpoint_interval=1, parallel=parallel)
        try:
            make_trainer(world, Path(run), train).fit()
        except CheckpointError as error:
            return str(error)
        return ""


def failing(run: str) -> list[int]:
    """The checkpoints of a run that fails two steps after one was begun, and before the next log interval."""
    with distributed() as world:
        parallel = ParallelConfig(global_batch_size=12, precision="fp32")
        train = TrainConfig(steps=9, log_interval=100, checkpoint_interval=4, parallel=parallel)

        def loader(start_step: int, skipped: Collection[int]) -> Iterator[AVBatch]:
            batches = micro_batches(world.rank, world.size, parallel, start_step, skipped)
            yield from islice(batches, 6)
            raise RuntimeError("a fault of ours")

        with contextlib.suppress(RuntimeError):
            make_trainer(world, Path(run), train, loader=loader).fit()
        return [checkpoint.state.step for checkpoint in find_checkpoints(Path(run))]
