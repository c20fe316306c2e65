"""The training loop: steps, what is seen of them, checkpoints, stopping, and going back after a bad step.

Between log intervals nothing waits for the device. At a log interval all ranks share the metrics of every step since
the last one, so all know alike whether a loss or gradient was non-finite, and in which step.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from datasets.atomic import write_atomically
from datasets.batch import AVBatch, FailureBudget, ReadFailure
from engine.objectives.base import Objective
from engine.parallel.deepspeed_engine import (
    ParallelConfig,
    build_engine,
    forget_universal,
    partition_gradients,
)
from engine.parallel.world import World
from engine.training.checkpoint import (
    Checkpoint,
    changed_settings,
    check_model,
    clear_leftovers,
    find_checkpoints,
    load_checkpoint,
    make_universal,
    needs_universal,
    save_checkpoint,
    weights_are_finite,
)
from engine.training.metrics import MetricBuffer, mean_metrics
from engine.training.optimizer import OptimizerConfig, build_optimizer, clip_gradients, set_lr
from engine.training.runlog import RunLog, logger
from engine.training.schedule import ScheduleConfig, lr_factor
from engine.training.stop import StopRequest
from engine.training.weight_average import WeightAverage

#: How often a run may go back to a checkpoint because of non-finite numbers before it gives up.
MAX_ROLLBACKS = 3


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and names the clips concerned."""


@dataclass(frozen=True)
class TrainConfig:
    """The course of a run.

    Attributes:
        epochs: Passes over the training clips (may be a fraction); ``steps`` overrides it.
        steps: Optimizer steps in all.
        log_interval: Steps between looks at the metrics.
        eval_interval: Steps between evaluations on held-out clips, 0 for none. One also comes before the first step
            and one after the last.
        checkpoint_interval: Steps between checkpoints. There is one before the first step and one after the last.
        keep_checkpoints: How many of the newest checkpoints stay.
        parallel: Batch, precision and how DeepSpeed divides the work.
    """

    epochs: float = 25.0
    steps: int | None = None
    log_interval: int = 20
    eval_interval: int = 0
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 2
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("log_interval", "checkpoint_interval", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        if self.eval_interval < 0:
            raise ValueError(f"train.eval_interval is {self.eval_interval}: it must be 0 or more")
        if self.epochs <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError("train.epochs and train.steps must be above 0")

    def total_steps(self, num_clips: int) -> int:
        """Optimizer steps for a training set of ``num_clips``."""
        if self.steps is not None:
            return self.steps
        return max(1, int(self.epochs * num_clips / self.parallel.global_batch_size))


@dataclass(frozen=True)
class TrainingData:
    """What the trainer reads from.

    Attributes:
        num_clips: Clips in the training set.
        loader: From a step on and without the steps that are passed over, micro-batches of this rank,
            ``accumulation_steps`` of them a step, without end.
        max_bad_fraction: Share of clips that may be unreadable before the run stops.
    """

    num_clips: int
    loader: Callable[[int, Collection[int]], Iterable[AVBatch]]
    max_bad_fraction: float = 0.01


#: Evaluates the objective after a step and returns named scalars; every rank calls it.
Evaluate = Callable[[Objective, int, RunLog], dict[str, float]]


class Trainer:
    """Trains one objective in one run's folder, from its newest checkpoint on.

    Args:
        objective: On the CPU, with its initial weights.
        config: The course of the run.
        optimizer: Adam's settings.
        schedule: The learning rate's.
        data: The training clips.
        world: The processes.
        run: The run's folder.
        config_yaml: The resolved config, kept beside every checkpoint.
        evaluate: Held-out evaluation, or None.
        peak_flops: What one device could do in FLOP/s, for the utilisation; None leaves it out.
        average: Keeps the mean of the weights over epochs, or None.
    """

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        data: TrainingData,
        world: World,
        run: Path,
        config_yaml: str,
        evaluate: Evaluate | None = None,
        peak_flops: float | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.average = average
        self.config, self.schedule, self.data, self.world, self.run = config, schedule, data, world, run
        self.optimizer_config, self.evaluate, self.config_yaml = optimizer, evaluate, config_yaml
        self.peak_flops = peak_flops
        self.total_steps = config.total_steps(data.num_clips)
        self.objective = objective.to(world.device)
        if config.parallel.compile:
            objective.model.compile()
        self.step = 0
        model = objective.model
        self._resume(build_optimizer(optimizer, model, objective.no_weight_decay(), objective.lr_groups()))
        self.skipped: set[int] = self._read_skipped()
        self.log = RunLog(run if world.is_main else None, self.step, self.total_steps)
        self.stop = StopRequest(world)
        self._metrics = MetricBuffer(config.log_interval, world.device)
        self._ids: dict[int, list[str]] = {}
        self._failures: list[ReadFailure] = []
        self._budget = FailureBudget(data.max_bad_fraction)
        self._waited, self._interval_started, self._interval_samples = 0.0, time.perf_counter(), 0

    def fit(self) -> bool:
        """Trains to the last step.

        Returns:
            True when finished, False when stopped on request (the checkpoint is written).

        Raises:
            TrainingError: Non-finite numbers again and again.
            TooManyFailuresError: Too many unreadable clips.
        """
        self.log.status("running", self.step)
        try:
            finished = self._fit()
        except BaseException as error:
            self.log.status("failed", self.step, f"{type(error).__name__}: {error}")
            raise
        finally:
            self.stop.close()
            self.log.close()
        self.log.status("finished" if finished else "stopped", self.step)
        return finished

    def _fit(self) -> bool:
        if self.step == 0:
            self._evaluate()
            self._save()
        batches = self._batches()
        while self.step < self.total_steps:
            self._train_step(batches)
            config, last = self.config, self.step == self.total_steps
            evaluate = last or (config.eval_interval and self.step % config.eval_interval == 0)
            save = last or self.step % config.checkpoint_interval == 0
            stop = self.stop.agreed() and not last
            average = self.average is not None and self.average.due(self.step)
            if self.step % config.log_interval == 0 or evaluate or save or stop or average:
                bad_step = self._report()
                if bad_step is not None:
                    self._go_back(bad_step)
                    batches = self._batches()
                    continue
            if evaluate:
                self._evaluate()
            if average and self.average is not None and self.world.is_main:
                # Before the checkpoint: a run resumed from it does not take this step again.
                self.average.update(self.objective.model, self.step)
            if save or stop:
                self._save()
            if stop:
                logger.info(
                    "stopped on request after step %d; run the same command again to go on", self.step
                )
                return False
        return True

    def _batches(self) -> Iterator[AVBatch]:
        self._interval_started, self._waited, self._interval_samples = time.perf_counter(), 0.0, 0
        return iter(self.data.loader(self.step, self.skipped))

    def _train_step(self, batches: Iterator[AVBatch]) -> None:
        """One optimizer step. The step's number is its batch's number, so a batch passed over is a step passed over."""
        if self.step in self.skipped:
            self.step += 1
            return
        started = time.perf_counter()
        micro_batches = [next(batches) for _ in range(self.config.parallel.accumulation_steps)]
        self._waited += time.perf_counter() - started
        for batch in micro_batches:
            self._failures += batch.failures
            self._budget.seen += len(batch) * self.world.size
        rates = set_lr(self.engine.optimizer, self._lr())
        metrics: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(micro_batches, start=1):
            # Said outright: DeepSpeed's own count of micro-batches starts anew when a run is resumed.
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            values = self.engine(batch.to(self.world.device))
            self.engine.backward(values["loss"])
            for name, value in values.items():
                metrics[name] = metrics.get(name, 0) + value.detach() / len(micro_batches)
        metrics["grad_norm"] = self._clip()
        self.engine.step()
        self.step += 1
        self._rates = rates
        self._interval_samples += self.config.parallel.global_batch_size
        self._ids[self.step] = [name for batch in micro_batches for name in batch.ids]
        self._metrics.append(self.step, metrics)

    def _clip(self) -> torch.Tensor:
        stage = self.config.parallel.zero_stage
        gradients = partition_gradients(self.engine, stage)
        return clip_gradients(gradients, self.optimizer_config.clip_grad, partitioned=stage > 0)

    def _lr(self) -> float:
        steps_per_epoch = self.data.num_clips / self.config.parallel.global_batch_size
        return self.optimizer_config.lr * lr_factor(
            self.schedule, self.step, self.total_steps, steps_per_epoch
        )

    def _report(self) -> int | None:
        """Looks at the steps since the last look; returns the first with non-finite numbers, if any."""
        table = self._metrics.drain(self.world)
        self._count_failures()
        for step, values in table.items():
            if not all(map(_finite, values.values())):
                return step
        self._ids.clear()
        if table:
            values = {f"train/{name}": value for name, value in mean_metrics(table).items()}
            values |= {f"train/lr_{name}": rate for name, rate in self._rates.items()}
            values |= self._speed()
            self.log.metrics(self.step, values)
            self.log.progress(self.step, values)
        self._interval_started, self._waited, self._interval_samples = time.perf_counter(), 0.0, 0
        return None

    def _speed(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self._interval_started
        rate = self._interval_samples / elapsed
        values = {
            "train/epoch": self.step * self.config.parallel.global_batch_size / self.data.num_clips,
            "train/samples_per_second": rate,
            "train/data_wait_share": self._waited / elapsed,
            "train/unreadable_clips": float(self._budget.failed),
        }
        if self.peak_flops:
            flops = rate / self.world.size * self.objective.flops_per_sample()
            values["train/mfu"] = flops / self.peak_flops
        return values

    def _count_failures(self) -> None:
        """Shares the unreadable clips of all ranks, names the new ones, stops the run where they are too many."""
        failures = [failure for part in self.world.gather_objects(self._failures) for failure in part]
        self._failures = []
        self._budget.failed += len(failures)
        for failure in failures:
            if failure.id not in self._budget.named:
                logger.warning("unreadable clip %s in %s: %s", failure.id, failure.shard, failure.reason)
                self._budget.named[failure.id] = failure
        self._budget.check()

    def _go_back(self, bad_step: int) -> None:
        """Returns to the newest checkpoint and passes over the batch whose numbers were not finite."""
        ids = [name for part in self.world.gather_objects(self._ids.get(bad_step, [])) for name in part]
        self.skipped.add(bad_step - 1)
        if len(self.skipped) > MAX_ROLLBACKS:
            raise TrainingError(
                f"loss or gradient was not finite in step {bad_step}, after {MAX_ROLLBACKS} such steps were passed "
                f"over already. Lower optimizer.lr or set optimizer.clip_grad. Clips: {', '.join(ids)}"
            )
        checkpoint = find_checkpoints(self.run)[-1]
        logger.error(
            "loss or gradient not finite in step %d; going back to step %d and passing that batch over. Clips: %s",
            bad_step, checkpoint.state.step, ", ".join(ids),
        )  # fmt: skip
        if self.world.is_main:
            write_atomically(self.run / "skipped_steps.json", json.dumps(sorted(self.skipped)))
        self._ids.clear()
        load_checkpoint(self.engine, checkpoint)
        self.step = checkpoint.state.step

    def _evaluate(self) -> None:
        if self.evaluate is None or not self.config.eval_interval:
            return
        self.objective.eval()
        values = self.evaluate(self.objective, self.step, self.log)
        self.objective.train()
        self.log.metrics(self.step, values)
        if self.world.is_main:
            logger.info(
                "step %d  %s", self.step, "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            )
        self._interval_started, self._waited, self._interval_samples = time.perf_counter(), 0.0, 0

    def _save(self) -> None:
        if not weights_are_finite(self.objective.model):
            raise TrainingError(f"weights are not finite at step {self.step}: no checkpoint is written")
        config = self.config
        save_checkpoint(
            self.engine, self.objective.model, self.run, self.step, config.parallel.zero_stage,
            self.config_yaml, config.keep_checkpoints, self.world,
        )  # fmt: skip

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Builds the engine and loads the newest complete checkpoint of the run, if there is one."""
        checkpoint = self._newest()
        if checkpoint is not None:
            check_model(checkpoint, self.objective.model)
        stage = self.config.parallel.zero_stage
        convert = checkpoint is not None and needs_universal(checkpoint, self.world.size, stage)
        universal = self._converted(checkpoint) if checkpoint is not None and convert else None
        self.engine = build_engine(self.objective, optimizer, self.config.parallel, self.world, convert)
        if checkpoint is None:
            return
        load_checkpoint(self.engine, checkpoint, universal)
        if universal is not None:
            self.world.barrier()
            if self.world.is_main:
                shutil.rmtree(universal)
        forget_universal(self.engine)
        self.step = checkpoint.state.step
        if self.world.is_main:
            logger.info("resuming at step %d from %s", self.step, checkpoint.path)
            for change in changed_settings(checkpoint, self.config_yaml):
                logger.warning("changed since that checkpoint: %s", change)

    def _converted(self, checkpoint: Checkpoint) -> Path:
        """A copy of the checkpoint's state for this world size, the same folder on every rank."""
        made = self.world.broadcast_object(make_universal(checkpoint) if self.world.is_main else None)
        assert isinstance(made, Path)
        return made

    def _newest(self) -> Checkpoint | None:
        if self.world.is_main:
            clear_leftovers(self.run)
        checkpoints = find_checkpoints(self.run) if self.world.is_main else []
        chosen = self.world.broadcast_object(checkpoints[-1] if checkpoints else None)
        assert chosen is None or isinstance(chosen, Checkpoint)
        return chosen

    def _read_skipped(self) -> set[int]:
        path = self.run / "skipped_steps.json"
        return set(json.loads(path.read_text())) if path.is_file() else set()


def _finite(value: float) -> bool:
    return value - value == 0
