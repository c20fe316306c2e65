"""Work spread over processes, with results in the order of the work.

Decoders are native code fed with files from anywhere; now and then one ends the process it runs in, or never
comes back. The standard pools then hang, or give up all work in flight without saying which item it was. Here
each worker holds one item at a time, so the item is known: it is tried once more in a fresh process (the
first may have ended because the system ran short of memory), and then answered with a ``Failure``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_OUT_OF_MEMORY = 102  # exit code
_AHEAD = 4  # items in flight or waiting for an earlier one, per worker: what bounds memory


class Failure(NamedTuple):
    """Stands in for the result of an item that no process came back from.

    Attributes:
        reason: ``worker_died`` or ``timed_out``.
        detail: What was seen, for people.
    """

    reason: str
    detail: str


class WorkerError(RuntimeError):
    """The function raised in a worker, whose traceback the message holds, or a worker could not start."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    job: int | None = None  # number of the item it works on
    since: float = 0.0

    def stop(self) -> int:
        """Ends the process and returns its exit code."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode or 0


class WorkerPool(Generic[T, R]):
    """Processes that apply a function; a context manager, at whose end they are ended.

    Args:
        function: A picklable callable.
        num_workers: Number of processes, at least 1. They start at once.
        timeout: Seconds after which a process that works on one item is ended.
        preload: Modules the workers need, imported once for all of them.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        num_workers: int,
        timeout: float = float("inf"),
        preload: Sequence[str] = (),
    ) -> None:
        self._function = function
        self._timeout = timeout
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._items: dict[int, Any] = {}  # handed out and not yet yielded, by number
        self._results: dict[int, Any] = {}
        self._again: list[int] = []  # items whose first worker died
        self._retried: set[int] = set()
        self._workers = [self._start() for _ in range(num_workers)]

    def map(self, items: Iterable[T]) -> Iterator[tuple[T, R | Failure]]:
        """Applies the function to each item.

        Args:
            items: Read as needed; no more than a few per worker are held at a time.

        Yields:
            Each item with its result, in the order of the items.

        Raises:
            WorkerError: The function raised, or a worker could not start.
        """
        source, next_out = enumerate(items), 0
        while True:
            while next_out in self._results:
                yield self._items.pop(next_out), self._results.pop(next_out)
                next_out += 1
            exhausted = self._hand_out(source)
            if exhausted and not self._items:
                return
            self._collect()

    def __enter__(self) -> WorkerPool[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end alone keeps the pipe open
        return _Worker(process, ours)

    def _hand_out(self, source: Iterator[tuple[int, Any]]) -> bool:
        """Gives every idle worker an item; returns whether there are no more."""
        for worker in self._workers:
            if not worker.ready or worker.job is not None:
                continue
            if self._again:
                worker.job = self._again.pop()
            elif len(self._items) < _AHEAD * len(self._workers):
                entry = next(source, None)
                if entry is None:
                    return True
                worker.job, self._items[entry[0]] = entry
            else:
                continue
            worker.since = time.monotonic()
            with suppress(OSError):  # it died while idle; _collect sees that on the same connection
                worker.connection.send(self._items[worker.job])
        return False

    def _collect(self) -> None:
        """Waits until a worker says something, dies, or has taken too long."""
        started = [worker.since for worker in self._workers if worker.job is not None]
        patience = max(0.0, min(started, default=time.monotonic()) + self._timeout - time.monotonic())
        heard = wait(
            [worker.connection for worker in self._workers], None if patience == float("inf") else patience
        )
        for i, worker in enumerate(self._workers):
            if worker.connection in heard:
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    self._bury(worker)
                    self._workers[i] = self._start()
                    continue
                if kind == "error":
                    raise WorkerError(f"a worker failed on {self._items.get(worker.job or 0)!r}:\n{value}")
                if worker.job is not None:
                    self._results[worker.job] = value
                worker.ready, worker.job = True, None
            elif worker.job is not None and time.monotonic() - worker.since > self._timeout:
                worker.stop()
                self._results[worker.job] = Failure("timed_out", f"took more than {self._timeout:g} s")
                self._workers[i] = self._start()

    def _bury(self, worker: _Worker) -> None:
        worker.process.join(timeout=5)  # its exit code, rather than that of our own kill
        code = worker.stop()
        if not worker.ready:
            raise WorkerError(f"a worker process ended with code {code} before it could start")
        if worker.job is None:
            return
        if worker.job in self._retried:
            self._results[worker.job] = Failure("worker_died", cause_of_death(code))
        else:
            self._retried.add(worker.job)
            self._again.append(worker.job)


def cause_of_death(code: int) -> str:
    """Why a worker died, for people, from its exit code (or minus the signal that ended it)."""
    if code in (_OUT_OF_MEMORY, -signal.SIGKILL):  # the system's answer to a lack of memory is SIGKILL
        how = "ran out of memory" if code == _OUT_OF_MEMORY else "was killed (SIGKILL; for lack of memory?)"
        return f"the process that decoded it {how}, twice; fewer --num_workers need less"
    how = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"the process that decoded it ended with {how}, twice"


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: answers items until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the cores are taken by the other workers
    try:
        connection.send(("ready", None))
        while True:
            item = connection.recv()
            try:
                answer = ("done", function(item))
            except MemoryError:
                os._exit(_OUT_OF_MEMORY)  # says nothing about the item, which a fresh process tries again
            except Exception:  # whatever it is, it is reported by the parent, and ends the run
                answer = ("error", traceback.format_exc())
            connection.send(answer)
    except (EOFError, OSError):
        return  # the parent is gone
