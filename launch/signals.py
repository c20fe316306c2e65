"""What the launcher hears while training runs, and how a job is handed back to submitit to be run again.

submitit's own handler saves and requeues inside the signal handler, on the first node only. Here a signal is
only noted; the launcher asks the workers to stop, waits for their checkpoint, and calls submitit's handler
afterwards, so that every way of running again is the same way.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from submitit.core.job_environment import JobEnvironment

from launch.progress import EXIT_RERUN

Handler = Callable[[int, FrameType | None], object]


class Signals:
    """Signals noted so far.

    Attributes:
        warned: The time limit or a preemption is near, or someone asks for a stop: save, and run again.
        terminated: The cluster ends the job (``scancel``, ``scontrol requeue``, preemption): save what can be
            saved. Whether it runs again is the cluster's business.
    """

    def __init__(self) -> None:
        self.warned = False
        self.terminated = False
        self._submitit: Handler | None = None

    @property
    def stop(self) -> bool:
        """Whether the workers should stop."""
        return self.warned or self.terminated

    @contextmanager
    def listening(self) -> Iterator[Signals]:
        """Takes the handlers for the time of the ``with`` block."""
        warning = JobEnvironment._usr_sig()
        handlers = {warning: self._warn, signal.SIGUSR1: self._warn, signal.SIGTERM: self._terminate}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        found = before[warning]
        if callable(found) and getattr(found, "__name__", "") == "checkpoint_and_try_requeue":
            self._submitit = found
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run_again(self) -> NoReturn:
        """Lets submitit requeue the job; without a queue, ends with the status for "run me again"."""
        if self._submitit is not None:
            self._submitit(JobEnvironment._usr_sig(), None)
        raise SystemExit(EXIT_RERUN)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.warned = True

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True
