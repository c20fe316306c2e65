"""Trainings in which something goes wrong, for tests/test_trainer.py; each runs in real processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import traceback
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.training import make_trainer, micro_batches, small_objective
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import engine.training.trainer as trainer_module
from datasets.batch import AVBatch, FailureBudget, ReadFailure, TooManyFailuresError
from engine.checkpoints.folder import find_checkpoints
from engine.checkpoints.weights import load_weights
from engine.objectives.cav_mae import CavMae
from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.watch import StepWatch
from engine.parallel.world import World, distributed
from engine.records.runlog import RunLog, logger
from engine.training.optimizer import OptimizerConfig
from engine.training.train_config import TrainConfig
from engine.training.trainer import Trainer, TrainingError


class Spoilt(CavMae):
    """Not finite on the last rank in the given steps, or wherever a clip is: the loss, or the gradient alone."""

    steps: Collection[int] = ()
    clip = ""
    gradient_only = False
    stopped_in: int | None = None
    trainer: Trainer | None = None
    world: World

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        values = super().forward(batch)
        assert self.trainer is not None
        if self.trainer.step == self.stopped_in and self.world.rank == 1:
            subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        spoilt = self.clip in batch.ids
        if spoilt or (self.trainer.step in self.steps and self.world.rank == self.world.size - 1):
            parameter = next(self.model.parameters())
            # The gradient of sqrt at 0 is infinite, times 0 it is NaN; the value itself is 0.
            nothing = (parameter * 0).sqrt().sum() * 0
            values["loss"] = values["loss"] + (nothing if self.gradient_only else nothing + float("nan"))
        return values


def spoilt_runs(runs: list[dict]) -> list[dict]:
    """For each run: the error's text or None, the steps passed over, and what the log said."""
    with distributed() as world:
        return [_spoilt_run(world, **run) for run in runs]


def _spoilt_run(
    world: World,
    run: str,
    steps: list[int],
    zero_stage: Any = 0,
    gradient_only: bool = False,
    stretch: int = 1000,
    clip: str = "",
    stopped_in: int | None = None,
) -> dict:
    trainer_module.STRETCH = stretch
    parallel = ParallelConfig(global_batch_size=12, zero_stage=zero_stage, precision="fp32")
    train = TrainConfig(steps=8, log_interval=3, checkpoint_interval=4, keep_checkpoints=9, parallel=parallel)
    base = small_objective()
    objective = Spoilt(base.model, base.audio_front_end.config, base.config)
    said = _Said()
    logger.addHandler(said)
    trainer = make_trainer(world, Path(run), train, objective=objective)
    objective.steps, objective.gradient_only, objective.trainer = steps, gradient_only, trainer
    objective.world, objective.clip, objective.stopped_in = world, clip, stopped_in
    if stopped_in is not None:
        trainer._watch = StepWatch(world.rank, world.size, first=2.0, period=0.25)
    error = None
    try:
        assert trainer.fit()
    except TrainingError as problem:
        error = str(problem)
    world.barrier()  # before the main rank has set checkpoints aside others would look into them
    weights = [load_weights(c.path) for c in find_checkpoints(Path(run))]
    finite = all(bool(torch.isfinite(value).all()) for state in weights for value in state.values())
    logger.removeHandler(said)
    return {"error": error, "skipped": sorted(trainer.skipped), "said": said.text, "finite": finite}


def ruined_and_run_again(run: str) -> dict:
    """A run whose rate ruins its weights until it gives up, and then as its error advises: with a lower rate."""
    with distributed() as world:
        parallel = ParallelConfig(global_batch_size=12, precision="fp32")
        train = TrainConfig(
            steps=8, log_interval=1, checkpoint_interval=1, keep_checkpoints=1, parallel=parallel
        )
        error = ""
        try:
            make_trainer(world, Path(run), train, OptimizerConfig(lr=1e30, weight_decay=0.0)).fit()
        except TrainingError as problem:
            error = str(problem)
        left = [checkpoint.state.step for checkpoint in find_checkpoints(Path(run))]
        again = make_trainer(world, Path(run), train, OptimizerConfig(lr=1e-3))
        begun = again.step
        return {
            "error": error,
            "left": left,
            "begun": begun,
            "finished": again.fit(),
            "skipped": sorted(again.skipped),
        }


class _Said(logging.Handler):
    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


class _Looks(TorchDispatchMode):
    """Notes operations that make the host wait for a number from the device, with who asked."""

    waiting = frozenset({"_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "item"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.waiting:
            self.seen.append(f"{name} from {traceback.format_stack(limit=8)}")
        return func(*args, **(kwargs or {}))


def looks_in_a_step(run: str, zero_stage: Any) -> list[str]:
    """What the host waited for in one step between log intervals."""
    with distributed() as world:
        parallel = ParallelConfig(
            global_batch_size=12, accumulation_steps=2, zero_stage=zero_stage, precision="fp32"
        )
        train = TrainConfig(steps=9, log_interval=9, checkpoint_interval=9, parallel=parallel)
        trainer = make_trainer(world, Path(run), train)
        batches = trainer._batches()
        trainer._train_step(batches)
        with _Looks() as looks:
            trainer._train_step(batches)
        assert len(trainer._metrics) == 2
        trainer.stop.close()
        trainer.log.close()
        return looks.seen


def unreadable(run: str, fraction: float, every: int = 1) -> dict:
    """A run in which the last rank has an unreadable clip in one batch of ``every``."""
    with distributed() as world:
        parallel = ParallelConfig(global_batch_size=12, precision="fp32")
        train = TrainConfig(steps=40, log_interval=1, checkpoint_interval=50, parallel=parallel)

        def loader(start: int, skipped: Collection[int]) -> Iterator[AVBatch]:
            batches = micro_batches(world.rank, world.size, parallel, start, skipped)
            for number, batch in enumerate(batches):
                bad = world.rank == world.size - 1 and number % every == 0
                failure = ReadFailure(f"bad{number}", "shard-000007.tar", "not a JPEG")
                yield replace(batch, failures=[failure] if bad else [])

        trainer = make_trainer(world, Path(run), train, loader=loader)
        trainer._budget = FailureBudget(fraction)
        said = _Said()
        logger.addHandler(said)
        error, shared = None, 0
        with patch.object(trainer, "_share_failures", wraps=trainer._share_failures) as share:
            try:
                trainer.fit()
            except TooManyFailuresError as problem:
                error = str(problem)
            shared = share.call_count
        return {"error": error, "step": trainer.step, "said": said.text, "shared": shared}


def evaluated(run: str) -> dict:
    """A short run with an evaluation that writes a picture."""

    def evaluate(objective, step: int, log: RunLog) -> dict[str, float]:
        assert not objective.training
        log.image("test/grey", torch.full((3, 8, 8), 100, dtype=torch.uint8), step)
        return {"val/score": float(step)}

    with distributed() as world:
        parallel = ParallelConfig(global_batch_size=12, precision="fp32")
        train = TrainConfig(
            steps=6,
            log_interval=2,
            eval_interval=3,
            checkpoint_interval=2,
            keep_checkpoints=2,
            parallel=parallel,
        )
        trainer = make_trainer(world, Path(run), train, evaluate=evaluate, peak_flops=1e12)
        return {"finished": trainer.fit()}
