"""Actions after certain steps, besides logging, evaluating and saving."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Hook(Protocol):
    """Something done after certain steps, once their numbers are known to be finite."""

    def check(self, step: int, total_steps: int) -> None:
        """Checks, before training, that a run that continues at ``step`` can do it; the main rank calls it.

        Raises:
            ValueError: It can't; the keys to change are named.
        """

    def discard_after(self, step: int) -> None:
        """Removes what an interrupted attempt left of later steps; the main rank calls it too, after `check`."""

    def due(self, step: int) -> bool:
        """Whether it runs after ``step``; the same on every rank."""
        ...

    def update(self, model: nn.Module, step: int) -> None:
        """Does it, on the main rank, before a checkpoint of the same step: a resumed run does not come here again."""
