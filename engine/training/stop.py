"""Stopping on request: a signal to any rank makes all ranks stop after the same step.

A cluster warns a job before it ends it. The signal may reach one rank only, or all of them in different steps, so
the ranks agree by a reduction in every step. It runs on the host beside the step that is being computed and is read
one step later, so that nobody waits for it. The evaluation at the end looks for signals between its batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from engine.parallel.world import World
from engine.signals import STOP

#: The exit status that says "saved; run me again" (EX_TEMPFAIL).
EXIT_RERUN = 75

T = TypeVar("T")


class StoppedError(Exception):
    """Somebody asked for a stop outside the training loop; every rank raises it at the same place."""


def stop_if_requested(world: World, meanwhile: str) -> None:
    """Raises `StoppedError` on every rank if a signal has come to any; every rank calls it."""
    if any(world.gather_objects(STOP.requested)):
        raise StoppedError(f"stopped on request {meanwhile}")


def until_stopped(batches: Iterable[T], world: World, meanwhile: str) -> Iterator[T]:
    """This rank's batches, up to a signal; every rank goes through its own to their end.

    Raises:
        StoppedError: A signal has come to any rank; raised behind the last batch, where the ranks agree.
    """
    for batch in batches:
        if STOP.requested:
            break
        yield batch
    stop_if_requested(world, meanwhile)


class StopRequest:
    """Listens for SIGTERM and SIGUSR1 and lets all ranks agree on the step to stop after."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        STOP.listen()
        STOP.clear()  # what came while the program started has ended it
        STOP.started()

    def agreed(self) -> bool:
        """Whether all ranks stop here. Every rank calls this once a step; every rank gets the same answer."""
        if self._world.size == 1:
            return STOP.requested
        answer = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor([STOP.requested], dtype=torch.int32)
        work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        assert work is not None
        self._pending = (work, flag)
        return answer

    def close(self) -> None:
        """Finishes the reduction under way. A signal that comes later is the evaluation's to heed."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
