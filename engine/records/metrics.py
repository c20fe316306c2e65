"""Numbers from the step, kept on the device until somebody looks: no synchronisation between log intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.parallel.world import World


class MetricBuffer:
    """The steps' metrics since the last look.

    A row a step on the device; ``drain`` sums the ranks and copies everything to the host in one go. A non-finite
    value keeps its place, so that the first bad step is known exactly, and known to all ranks alike.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._capacity, self._device = capacity, device
        self._names: list[str] = []
        self._rows: Tensor = torch.empty(0, 0, device=device)
        self._steps: list[int] = []

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: int, metrics: dict[str, Tensor]) -> None:
        """Notes the metrics of ``step``: () tensors, always of the same names."""
        if not self._names:
            self._names = list(metrics)
            self._rows = torch.zeros(self._capacity, len(metrics), device=self._device)
        values = torch.stack([metrics[name].detach().float() for name in self._names])
        self._rows[len(self._steps)].copy_(values, non_blocking=True)
        self._steps.append(step)

    def drain(self, world: World, told: Sequence[int] = ()) -> tuple[dict[int, dict[str, float]], list[int]]:
        """Shares what was noted, and empties the buffer; every rank calls it.

        Args:
            world: The processes.
            told: Small whole numbers of this rank, which go along in the same reduction.

        Returns:
            Every noted step's metrics, averaged over the ranks, and the sums of ``told``, which are exact.
        """
        rows = self._rows[: len(self._steps)]
        numbers = torch.tensor(told, dtype=torch.float32, device=self._device)
        shared = world.sum(torch.cat([rows.flatten(), numbers]))
        means, sums = (shared[: rows.numel()] / world.size).view_as(rows), shared[rows.numel() :]
        table = {
            step: dict(zip(self._names, row, strict=True))
            for step, row in zip(self._steps, means.tolist(), strict=True)
        }
        self._steps = []
        return table, [round(value) for value in sums.tolist()]


def mean_metrics(table: dict[int, dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the steps of ``MetricBuffer.drain``."""
    rows = list(table.values())
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
