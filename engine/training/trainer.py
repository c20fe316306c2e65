"""The training loop: steps, what is seen of them, checkpoints, stopping, and going back after a bad step.

Between log intervals nothing waits for the device. At a log interval all ranks share the metrics of every step since
the last one, so all know alike whether a loss or gradient was non-finite, and in which step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from atomic import write_atomically
from datasets.batch import AVBatch, FailureBudget, ReadFailure
from datasets.untrusted import whole_number
from engine.checkpoints.folder import Checkpoint, CheckpointError, find_checkpoints
from engine.checkpoints.keeping import last_known_good, newest_sound_checkpoint, set_aside
from engine.checkpoints.saving import CheckpointWriter, Notes
from engine.checkpoints.weights import weights_are_finite
from engine.objectives.base import Objective, first_step
from engine.parallel.deepspeed_engine import inner_optimizer, partition_gradients
from engine.parallel.transfer import Transfer
from engine.parallel.watch import StepWatch
from engine.parallel.world import World
from engine.records.attempts import Attempt, device_name
from engine.records.metrics import MetricBuffer, mean_metrics
from engine.records.runlog import RunLog, logger
from engine.training.hooks import Hook
from engine.training.optimizer import clip_gradients, set_lr, skip_unless_finite
from engine.training.resume import restore, resume
from engine.training.schedule import lr_factor
from engine.training.spoiling_clips import spoiling_clips
from engine.training.stop import StopRequest
from engine.training.throughput import Throughput
from models import parameter_count
from models.layers.blocks import compile_blocks

if TYPE_CHECKING:
    from engine.config import RunConfig

#: How often a run may go back to a checkpoint because of non-finite numbers, in a stretch of so many steps, before it
#: gives up.
MAX_ROLLBACKS, STRETCH = 3, 1000
_SKIPPED = "skipped_steps.json"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and names the clips concerned."""


@dataclass(frozen=True)
class TrainingData:
    """What the trainer reads from.

    Attributes:
        num_clips: Clips in the training set.
        loader: From a step on and without the steps that are skipped, micro-batches of this rank,
            ``accumulation_steps`` of them a step, without end.
        max_bad_fraction: Share of clips that may be unreadable before the run stops.
        fingerprint: Tells the set from others; empty where nobody knows.
    """

    num_clips: int
    loader: Callable[[int, Collection[int]], Iterable[AVBatch]]
    max_bad_fraction: float = 0.01
    fingerprint: str = ""


#: Evaluates the objective after a step and returns named scalars; every rank calls it.
Evaluate = Callable[[Any, int, RunLog], dict[str, float]]


class Trainer:
    """Trains one objective in one run's folder, from its newest checkpoint on.

    Args:
        objective: On the CPU, with its initial weights.
        config: The run; its ``train``, ``optimizer``, ``schedule`` and ``output_dir`` are used.
        data: The training clips.
        world: The processes.
        config_yaml: The resolved config, kept beside every checkpoint.
        evaluate: Held-out evaluation, or None.
        hooks: What else is done after some steps.
        peak_flops: What one device could do in FLOP/s, for the utilisation; None leaves it out.
    """

    def __init__(
        self,
        objective: Objective[Any],
        config: RunConfig,
        data: TrainingData,
        world: World,
        config_yaml: str,
        evaluate: Evaluate | None = None,
        hooks: Sequence[Hook] = (),
        peak_flops: float | None = None,
    ) -> None:
        self.config, self.optimizer, self.schedule = config.train, config.optimizer, config.schedule
        self.run, self.config_yaml = Path(config.output_dir), config_yaml
        self.data, self.world, self.evaluate, self.hooks = data, world, evaluate, hooks
        self.total_steps = self.config.total_steps(data.num_clips)
        self.objective = objective.to(world.device)
        if self.config.parallel.compile:
            compile_blocks(objective.model)
        self.engine, groups, checkpoint = resume(objective, config, world, config_yaml, data.fingerprint)
        self.step, self._notes = 0, Notes(data.fingerprint, groups)
        if checkpoint is not None:
            self.step = checkpoint.state.step
            self._check_length(checkpoint)
        world.from_main(lambda: self._prepare(hooks))
        self.skipped: set[int] = world.from_main(self._read_skipped)
        run = self.run if world.is_main else None
        self.log = RunLog(run, self.step, self.total_steps, config.log, config_yaml)
        self.stop = StopRequest(world)
        self._checkpoints = CheckpointWriter(
            self.run, world, self.config.parallel.zero_stage, self.config.keep_checkpoints
        )
        self._to_device = Transfer(world.device)
        self._watch = StepWatch(world.rank, world.size)
        self._metrics = MetricBuffer(self.config.log_interval, world.device)
        self._ids: dict[int, list[str]] = {}
        self._failures: list[ReadFailure] = []
        self._budget = FailureBudget(data.max_bad_fraction)
        flops = objective.workload(self.config.parallel.uses_bf16(world.device)).flops
        self._throughput = Throughput(flops, peak_flops, world.size)
        self._attempt = Attempt(
            self.step,
            self.total_steps,
            world.size,
            device_name(world.device),
            parameter_count(objective.model, trainable_only=False),
            data.num_clips,
            flops,
            peak_flops,
        )
        self._last_evaluated = self._last_saved = time.monotonic()

    def _prepare(self, hooks: Sequence[Hook]) -> None:
        for hook in hooks:
            hook.check(self.step, self.total_steps)
            hook.discard_after(self.step)

    def fit(self) -> bool:
        """Trains to the last step.

        Returns:
            True when finished, False when stopped on request (the checkpoint is written).

        Raises:
            TrainingError: Non-finite numbers again and again.
            TooManyFailuresError: Too many unreadable clips.
        """
        self.log.status(self.step, state="running", phase="training", evaluated=0, message="")
        if self.world.is_main:
            self._attempt.note(self.run)
        try:
            with self._watch:
                finished = self._fit()
                self._checkpoints.finish()
        except BaseException as error:
            if self.world.size == 1:  # of several, others may not come to it
                with suppress(Exception):
                    self._checkpoints.finish()
            self.log.status(self.step, state="failed", message=f"{type(error).__name__}: {error}")
            raise
        finally:
            self.stop.close()
            self.log.close()
            self._checkpoints.close()
        # Whether the run is finished is the program's to say: an evaluation may follow.
        self.log.status(self.step, **({} if finished else {"state": "stopped"}))
        return finished

    def _fit(self) -> bool:
        if self.step == 0:
            self._evaluate()
            self._save()
        batches = self._batches()
        while self.step < self.total_steps:
            self._train_step(batches)
            due = self._due()
            bad_step = self._report() if due.anything else None
            self._watch.end()
            if bad_step is not None:
                self._go_back(bad_step)
                batches = self._batches()
                continue
            if due.evaluation:
                self._evaluate()
            if due.hooks:
                self._update(due.hooks)
            learned = self._notes.loss is not None or self.step == self.total_steps
            if (due.checkpoint or due.stop) and learned:  # not after skipped steps alone
                self._save()
            if due.stop:
                logger.info(
                    "stopped on request after step %d; run the same command again to go on", self.step
                )
                return False
        return True

    def _update(self, hooks: Sequence[Hook]) -> None:
        """Calls rank 0's hooks; like an evaluation, outside compiled graphs and the throughput of training."""
        if self.world.is_main:
            with torch.compiler.set_stance("force_eager"):
                for hook in hooks:
                    hook.update(self.objective.model, self.step)
        self._throughput.restart()

    def _due(self) -> Due:
        """What follows the step just taken; the same on every rank."""
        config, last = self.config, self.step == self.total_steps
        log = self.step % config.log_interval == 0
        evaluation = last or _every(config.eval_interval, self.step)
        checkpoint = last or _every(config.checkpoint_interval, self.step)
        if log and (config.eval_minutes or config.checkpoint_minutes):
            for_evaluation, for_checkpoint = self.world.from_main(
                lambda: (
                    _late(self._last_evaluated, config.eval_minutes),
                    _late(self._last_saved, config.checkpoint_minutes),
                )
            )
            evaluation, checkpoint = evaluation or for_evaluation, checkpoint or for_checkpoint
        hooks = [hook for hook in self.hooks if hook.due(self.step)]
        return Due(log, evaluation, checkpoint, self.stop.agreed() and not last, hooks)

    def _batches(self) -> Iterator[AVBatch]:
        self._throughput.restart()
        return iter(self.data.loader(self.step, self.skipped))

    def _train_step(self, batches: Iterator[AVBatch]) -> None:
        """One optimizer step. The step's number is its batch's number, so a skipped batch is a skipped step."""
        if self.step in self.skipped:
            self.step += 1
            return
        started = time.perf_counter()
        micro_batches = [next(batches) for _ in range(self.config.parallel.accumulation_steps)]
        self._throughput.count(self.config.parallel.global_batch_size, time.perf_counter() - started)
        for batch in micro_batches:
            self._failures += batch.failures
            self._budget.seen += len(batch) * self.world.size
        self._watch.begin(self.step + 1)
        rates = set_lr(self.engine.optimizer, self._lr)
        self.objective.before_step(self.step, self._steps_per_epoch)
        metrics: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(micro_batches, start=1):
            # Set explicitly: DeepSpeed's own count of micro-batches restarts when a run is resumed.
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            values = self.engine(self._to_device(batch))
            self.engine.backward(values["loss"])
            for name, value in values.items():
                metrics[name] = metrics.get(name, 0) + value.detach() / len(micro_batches)
        metrics["grad_norm"] = self._clip()
        self.engine.step()
        self.step += 1
        self.objective.after_step(self.step, self.total_steps)
        self._rates = rates
        self._ids[self.step] = [name for batch in micro_batches for name in batch.ids]
        self._metrics.append(self.step, metrics)

    def _clip(self) -> torch.Tensor:
        stage = self.config.parallel.zero_stage
        gradients = partition_gradients(self.engine, stage)
        norm = clip_gradients(gradients, self.optimizer.clip_grad, partitioned=stage > 0)
        skip_unless_finite(inner_optimizer(self.engine), norm)
        return norm

    @property
    def _steps_per_epoch(self) -> float:
        return self.data.num_clips / self.config.parallel.global_batch_size

    def _lr(self, from_epoch: float) -> float:
        """The rate of parameters that learn from an epoch on, their schedule being that of the rest of the run."""
        begin = first_step(from_epoch, self._steps_per_epoch)
        if self.step < begin:
            return 0.0
        rest = self.total_steps - begin
        return self.optimizer.lr * lr_factor(self.schedule, self.step - begin, rest, self._steps_per_epoch)

    def _report(self) -> int | None:
        """Looks at the steps since the last look; returns the first with non-finite numbers, if any."""
        told = [len(self._failures), int(self._checkpoints.writing)]
        table, (failures, writing) = self._metrics.drain(self.world, told)
        self._watch.end()
        if not writing:
            self._checkpoints.finish()
        if failures:
            self._share_failures()
        for step, values in table.items():
            if not all(map(math.isfinite, values.values())):
                return step
        self._ids.clear()
        if table:
            values = {f"train/{name}": value for name, value in mean_metrics(table).items()}
            values |= {f"train/lr_{name}": rate for name, rate in self._rates.items()}
            values |= self._speed()
            self.log.metrics(self.step, values)
            self.log.progress(self.step, values)
            self._notes = replace(self._notes, loss=values["train/loss"])
        self.log.reached(self.step)
        self._throughput.restart()
        return None

    def _speed(self) -> dict[str, float]:
        values = {f"train/{name}": value for name, value in self._throughput.values().items()}
        return values | {
            "train/epoch": self.step * self.config.parallel.global_batch_size / self.data.num_clips,
            "train/unreadable_clips": float(self._budget.failed),
        }

    def _share_failures(self) -> None:
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
        """Returns to the newest checkpoint and skips the batch whose numbers were not finite."""
        self._checkpoints.finish()
        ids = [name for part in self.world.gather_objects(self._ids.get(bad_step, [])) for name in part]
        self.skipped.add(bad_step - 1)
        if sum(step > bad_step - STRETCH for step in self.skipped) > MAX_ROLLBACKS:
            raise TrainingError(
                f"loss or gradient was not finite in step {bad_step}, after {MAX_ROLLBACKS} such steps were skipped "
                f"already. {self._retreat()} Clips: {', '.join(ids)}"
            )
        checkpoint = newest_sound_checkpoint(self.run, self.world)
        assert checkpoint is not None
        logger.error(
            "loss or gradient not finite in step %d; going back to step %d and skipping that batch. Clips: %s",
            bad_step, checkpoint.state.step, ", ".join(ids),
        )  # fmt: skip
        self._write_skipped()
        self._ids.clear()
        restore(self.engine, checkpoint, self.world, self.config.parallel.zero_stage)
        self.step = checkpoint.state.step
        self._blame(bad_step)

    def _blame(self, bad_step: int) -> None:
        """Says which clips of a bad step's batch are not finite alone, with the checkpoint's weights."""
        self.objective.before_step(bad_step - 1, self._steps_per_epoch)
        batches = islice(self.data.loader(bad_step - 1, ()), self.config.parallel.accumulation_steps)
        bf16 = self.config.parallel.uses_bf16(self.world.device)
        with torch.compiler.set_stance("force_eager"):
            found = spoiling_clips(self.objective, batches, self.world.device, bf16)
        names = [name for part in self.world.gather_objects(found) for name in part]
        if names:
            logger.error("not finite alone, with the weights of step %d: %s", self.step, ", ".join(names))
        else:
            logger.error(
                "each of these clips alone is finite, with the weights of step %d: if it happens again, the steps "
                "are too long (optimizer.lr, optimizer.clip_grad)", self.step,
            )  # fmt: skip

    def _retreat(self) -> str:
        """Sets aside checkpoints that may hold the ruined weights, so that another attempt begins before them.

        Returns:
            What to do now.
        """
        checkpoints = self.world.from_main(lambda: find_checkpoints(self.run))
        good = last_known_good(checkpoints) or checkpoints[-1]
        aside = [checkpoint for checkpoint in checkpoints if checkpoint.state.step > good.state.step]
        # The batches after it were not to blame.
        self.skipped = {step for step in self.skipped if step < good.state.step}
        if self.world.is_main:
            set_aside(aside, "suspect")
        self._write_skipped()
        steps = ", ".join(str(checkpoint.state.step) for checkpoint in aside)
        said = (
            f"Checkpoints that may hold ruined weights are set aside (suspect_step_…, {steps}). "
            if aside
            else ""
        )
        return (
            f"{said}Lower optimizer.lr or set optimizer.clip_grad, and run it again: it goes on from step "
            f"{good.state.step}."
        )

    def _evaluate(self) -> None:
        if self.evaluate is None or not self.config.evaluates:
            return
        self.objective.eval()
        with torch.compiler.set_stance("force_eager"):  # its shapes are not those of training
            values = self.evaluate(self.objective, self.step, self.log)
        self.objective.train()
        self.log.metrics(self.step, values)
        if self.world.is_main:
            logger.info(
                "step %d  %s", self.step, "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            )
        self._last_evaluated = time.monotonic()
        self._throughput.restart()

    def _save(self) -> None:
        if not weights_are_finite(self.objective.model):
            raise TrainingError(f"weights are not finite at step {self.step}: no checkpoint is written")
        self._checkpoints.begin(self.engine, self.objective, self.step, self.config_yaml, self._notes)
        self._notes = replace(self._notes, loss=None)
        self._last_saved = time.monotonic()

    def _check_length(self, checkpoint: Checkpoint) -> None:
        if self.step > self.total_steps:
            raise CheckpointError(
                f"{checkpoint.path} is beyond the end of this run: train.steps or train.epochs make {self.total_steps} "
                "steps. Raise them, or choose another output_dir with init pointing at this checkpoint"
            )

    def _read_skipped(self) -> set[int]:
        path = self.run / _SKIPPED
        try:
            found = json.loads(path.read_bytes()) if path.is_file() else []
            if not isinstance(found, list) or not all(whole_number(step, 0, 1 << 62) for step in found):
                raise ValueError("it is no list of steps")
            return set(found)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}): bring it back from a copy, or remove it"
            ) from error

    def _write_skipped(self) -> None:
        if self.world.is_main:
            write_atomically(self.run / _SKIPPED, json.dumps(sorted(self.skipped)))


@dataclass(frozen=True)
class Due:
    """What follows a step.

    Attributes:
        log: A look at the metrics.
        evaluation: Held-out evaluation.
        checkpoint: A checkpoint.
        stop: The end, on request.
        hooks: Whatever else.
    """

    log: bool
    evaluation: bool
    checkpoint: bool
    stop: bool
    hooks: Sequence[Hook]

    @property
    def anything(self) -> bool:
        """Whether the metrics must be looked at."""
        return bool(self.log or self.evaluation or self.checkpoint or self.stop or self.hooks)


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step % interval == 0


def _late(since: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - since >= 60 * minutes
