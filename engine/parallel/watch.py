"""Says when a step goes on for long because another rank has stopped or is lost.

A collective waits half an hour before it fails (`engine.parallel.world.distributed`), and says nothing until then.
"""

from __future__ import annotations

import logging
import threading
import time

_logger = logging.getLogger("earsight")


class StepWatch:
    """Looks at a rank's steps from a thread of its own; a context manager. In a world of one there is no thread.

    Args:
        rank: Of this process.
        size: Number of processes.
        first: Seconds in a step until it is said first; three times the longest step so far where that is more.
        again: Seconds until it is said again.
        period: Seconds from look to look. Looks are what is counted, so that a process which itself stood still
            does not take that for waiting.
    """

    def __init__(
        self, rank: int, size: int, first: float = 60.0, again: float = 300.0, period: float = 5.0
    ) -> None:
        self._rank, self._size = rank, size
        self._first, self._again, self._period = first, again, period
        self._current: tuple[int, float] | None = None  # the step and when it began; replaced as a whole
        self._longest = 0.0
        self._closed = threading.Event()

    def __enter__(self) -> StepWatch:
        if self._size > 1:
            threading.Thread(target=self._look, name="step watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def begin(self, step: int) -> None:
        """From here on the ranks wait for each other in ``step`` (1-based)."""
        self._current = step, time.monotonic()

    def end(self) -> None:
        """What follows takes as long as it takes: reading, evaluation, checkpoints."""
        if self._current is not None:
            self._longest = max(self._longest, time.monotonic() - self._current[1])
            self._current = None

    def _look(self) -> None:
        seen, waited, due = None, 0.0, 0.0
        while not self._closed.wait(self._period):
            current = self._current
            if current is None or current is not seen:
                seen, waited, due = current, 0.0, max(self._first, 3 * self._longest)
                continue
            waited += self._period
            if waited >= due:
                due = waited + self._again
                # An error: every rank is to say it.
                _logger.error(
                    "rank %d has waited %.0f s for the others in step %d (until now a step took %.0f s at most); is "
                    "each of them still running?", self._rank, waited, current[0], self._longest,
                )  # fmt: skip
