"""Stopping on request: a signal to any rank makes all ranks stop after the same step.

A cluster warns a job before it ends it. The signal may reach one rank only, or all of them in different steps, so
the ranks agree by a reduction in every step. It runs on the host beside the step that is being computed and is read
one step later, so that nobody waits for it.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from engine.parallel.world import World

#: The exit status that says "saved; run me again" (EX_TEMPFAIL).
EXIT_RERUN = 75


class StopRequest:
    """Listens for SIGTERM and SIGUSR1 and lets all ranks agree on the step to stop after."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._requested = torch.zeros(1, dtype=torch.int32)
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._requested.fill_(1)

    def agreed(self) -> bool:
        """Whether all ranks stop here. Every rank calls this once a step; every rank gets the same answer."""
        if self._world.size == 1:
            return bool(self._requested.item())
        answer = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            answer = bool(flag.item())
        flag = self._requested.clone()
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        assert work is not None
        self._pending = (work, flag)
        return answer

    def close(self) -> None:
        """Finishes the reduction under way; from here on the signals are ignored.

        They say what is being done already: a second one must not end a rank between its checkpoint and its exit.
        """
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
