"""The course of a run: steps, batch, precision, intervals."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.parallel.deepspeed_engine import ParallelConfig


@dataclass(frozen=True)
class TrainConfig:
    """The course of a run.

    Attributes:
        epochs: Passes over the training clips (may be a fraction); ``steps`` overrides it.
        steps: Optimizer steps in all.
        log_interval: Steps between two readings of the metrics.
        eval_interval: Steps between evaluations on held-out clips, 0 for none. There is also one before the first
            step and one after the last.
        eval_minutes: Minutes between evaluations, besides ``eval_interval``; checked every ``log_interval`` steps.
        checkpoint_interval: Steps between checkpoints. There is one before the first step and one after the last.
        checkpoint_minutes: Minutes between checkpoints, likewise.
        keep_checkpoints: How many of the newest checkpoints are kept, besides the last that is known to be good.
        accept_changed_data: Whether a run may resume although ``data.train`` holds other clips than before.
        parallel: Batch, precision and how DeepSpeed divides the work.
    """

    epochs: float = 25.0
    steps: int | None = None
    log_interval: int = 20
    eval_interval: int = 0
    eval_minutes: float | None = None
    checkpoint_interval: int = 1000
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 2
    accept_changed_data: bool = False
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("log_interval", "checkpoint_interval", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("eval_minutes", "checkpoint_minutes"):
            minutes = getattr(self, name)
            if minutes is not None and minutes <= 0:
                raise ValueError(f"train.{name} is {minutes}: it must be above 0, or null")
        if self.eval_interval < 0:
            raise ValueError(f"train.eval_interval is {self.eval_interval}: it must be 0 or more")
        if self.epochs <= 0 or (self.steps is not None and self.steps < 1):
            raise ValueError("train.epochs and train.steps must be above 0")

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluations at all."""
        return bool(self.eval_interval or self.eval_minutes)

    def total_steps(self, num_clips: int) -> int:
        """Optimizer steps for a training set of ``num_clips``."""
        if self.steps is not None:
            return self.steps
        return max(1, int(self.epochs * num_clips / self.parallel.global_batch_size))
