"""Stopping on request: a signal to any rank makes all ranks stop after the same step.

A cluster warns a job before it ends it. The signal may reach one rank only, or all of them in different steps, so
the ranks vote, by a reduction about once a second. It runs on the host beside the step that is being computed and is
read one step later, so that nobody waits for it. The evaluation at the end looks for signals between its batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from engine.parallel.world import World
from engine.signals import STOP

#: The exit status that says "saved; run me again" (EX_TEMPFAIL).
EXIT_RERUN = 75
#: Between votes, however fast: the steps to come may be slower, as where clips are read more slowly.
_MOST_STEPS = 32

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
    """Listens for SIGTERM and SIGUSR1 and lets all ranks agree on the step to stop after.

    Args:
        world: The processes.
        period: Seconds from vote to vote. A step that takes longer has a vote of its own.
    """

    def __init__(self, world: World, period: float = 1.0) -> None:
        self._world, self._period = world, period
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._steps_to_vote, self._interval, self._voted = 0, 1, -math.inf
        STOP.listen()
        STOP.clear()  # what came while the program started has ended it
        STOP.started()

    def agreed(self) -> bool:
        """Whether all ranks stop here. Every rank calls this once a step; every rank gets the same answer."""
        if self._world.size == 1:
            return STOP.requested
        answer = self._result()
        self._steps_to_vote -= 1
        if self._steps_to_vote <= 0:
            self._vote()
        return answer

    def _vote(self) -> None:
        """Each rank says whether to stop, and how long a step takes: the longest decides for all when the next vote is.

        What else was done since the last vote, such as an evaluation, counts as steps: then the next one comes early.
        """
        now = time.monotonic()
        seconds, self._voted = (now - self._voted) / self._interval, now
        said = torch.tensor([float(STOP.requested), seconds], dtype=torch.float64)
        work = dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True)
        assert work is not None
        self._pending = (work, said)

    def _result(self) -> bool:
        if self._pending is None:
            return False
        (work, said), self._pending = self._pending, None
        work.wait()
        requested, seconds = said.tolist()
        self._interval = int(min(max(self._period / seconds, 1), _MOST_STEPS))
        self._steps_to_vote = self._interval
        return bool(requested)

    def close(self) -> None:
        """Finishes the vote under way. A signal that comes later is the evaluation's to heed."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
