"""How fast training goes between two log intervals: samples, waiting for data, utilisation."""

from __future__ import annotations

import time


class Throughput:
    """Counts since the last look.

    Args:
        flops_per_sample: Of a training step.
        peak_flops: What one device could do in FLOP/s; None leaves utilisation out.
        world_size: Processes that share the samples.
    """

    def __init__(self, flops_per_sample: float, peak_flops: float | None, world_size: int) -> None:
        self._flops, self._peak, self._world_size = flops_per_sample, peak_flops, world_size
        self.restart()

    def restart(self) -> None:
        """Begins a new interval: what came before, such as an evaluation, does not count."""
        self._started, self._waited, self._samples = time.perf_counter(), 0.0, 0

    def count(self, samples: int, waited: float) -> None:
        """Notes a step's samples over all ranks, and the seconds for which this rank waited for its data."""
        self._samples += samples
        self._waited += waited

    def values(self) -> dict[str, float]:
        """``samples_per_second``, ``data_wait_share`` and, with a peak, ``mfu`` (share of the device's peak)."""
        elapsed = time.perf_counter() - self._started
        rate = self._samples / elapsed
        values = {"samples_per_second": rate, "data_wait_share": self._waited / elapsed}
        if self._peak:
            values["mfu"] = rate / self._world_size * self._flops / self._peak
        return values
