"""Learning rate as a function of the step: nothing to store, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes.

    Attributes:
        warmup_epochs: The rate rises linearly from 0 over so many epochs (may be a fraction).
        final_lr_ratio: The cosine ends at this share of the peak.
        halve_from_epoch: Instead of the cosine, halve the rate at this epoch and again every ``halve_every_epochs``
            (the published CAV-MAE schedule halves every 5 epochs from the 10th).
        halve_every_epochs: See ``halve_from_epoch``.
    """

    warmup_epochs: float = 0.0
    final_lr_ratio: float = 0.0
    halve_from_epoch: float | None = None
    halve_every_epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise ValueError(f"schedule.warmup_epochs is {self.warmup_epochs}: it must be 0 or more")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(f"schedule.final_lr_ratio is {self.final_lr_ratio}: it must lie in 0 … 1")
        if self.halve_every_epochs <= 0:
            raise ValueError(f"schedule.halve_every_epochs is {self.halve_every_epochs}: it must be above 0")


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: float) -> float:
    """The share of the peak learning rate with which step ``step`` (0-based) is taken."""
    epoch = step / steps_per_epoch
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps >= 1 else 1.0
    if schedule.halve_from_epoch is not None:
        if epoch < schedule.halve_from_epoch:
            return warmup
        return warmup * 0.5 ** (
            1 + math.floor((epoch - schedule.halve_from_epoch) / schedule.halve_every_epochs)
        )
    progress = min(1.0, max(0.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps)))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return warmup * (schedule.final_lr_ratio + (1.0 - schedule.final_lr_ratio) * cosine)
