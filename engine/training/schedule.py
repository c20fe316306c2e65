"""Learning rate as a function of the step: nothing to store, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes.

    Attributes:
        kind: ``constant``; ``cosine``: half a cosine down to ``final_lr_ratio``; ``halving``: halved at
            ``halve_from_epoch`` and again every ``halve_every_epochs``; ``one_cycle``: up from ``initial_lr_ratio`` by
            half a cosine in ``warmup_epochs``, then down to ``final_lr_ratio`` by another.
        warmup_epochs: Epochs (may be a fraction) over which the rate rises linearly from 0; for ``one_cycle`` see
            above.
        initial_lr_ratio: Where ``one_cycle`` begins, as a share of the peak.
        final_lr_ratio: Where ``cosine`` and ``one_cycle`` end.
        halve_from_epoch: Of ``halving`` (published CAV-MAE: every 5 epochs from the 10th).
        halve_every_epochs: See ``halve_from_epoch``.
    """

    kind: Literal["constant", "cosine", "halving", "one_cycle"] = "cosine"
    warmup_epochs: float = 0.0
    initial_lr_ratio: float = 0.04
    final_lr_ratio: float = 0.0
    halve_from_epoch: float | None = None
    halve_every_epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise ValueError(f"schedule.warmup_epochs is {self.warmup_epochs}: it must be 0 or more")
        for name in ("initial_lr_ratio", "final_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"schedule.{name} is {getattr(self, name)}: it must lie in 0 … 1")
        if self.halve_every_epochs <= 0:
            raise ValueError(f"schedule.halve_every_epochs is {self.halve_every_epochs}: it must be above 0")
        if (self.kind == "halving") != (self.halve_from_epoch is not None):
            raise ValueError(
                f"schedule.kind is {self.kind} and schedule.halve_from_epoch {self.halve_from_epoch}: to halve the "
                "rate give both schedule.kind=halving and an epoch; otherwise leave halve_from_epoch out"
            )


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: float) -> float:
    """The share of the peak learning rate with which step ``step`` (0-based) is taken."""
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if schedule.kind == "one_cycle" and step < warmup_steps:
        return _cosine(schedule.initial_lr_ratio, 1.0, step / warmup_steps)
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps >= 1 else 1.0
    if schedule.kind == "constant":
        return warmup
    if schedule.kind == "halving":
        return warmup * _halved(schedule, step / steps_per_epoch)
    progress = min(1.0, max(0.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps)))
    return warmup * _cosine(1.0, schedule.final_lr_ratio, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` to ``end`` at ``progress`` in 0 … 1."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _halved(schedule: ScheduleConfig, epoch: float) -> float:
    assert schedule.halve_from_epoch is not None
    if epoch < schedule.halve_from_epoch:
        return 1.0
    return 0.5 ** (1 + math.floor((epoch - schedule.halve_from_epoch) / schedule.halve_every_epochs))
