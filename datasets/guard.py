"""Decoding in a process apart, so that a decoder which dies costs the clip it was given and nothing else.

Decoders are native code fed with files from anywhere; now and then one ends the process that it runs in. Readers of
training and embedding call theirs through a `Guard`: a child process, forked at the first call, that answers one
call at a time. When the child dies, the call that killed it is known; it is tried once more in a fresh child (the first
may have ended because the system ran short of memory), and then it is an error of that call.

Forking is what a ``DataLoader`` does for its workers, and as safe: the child computes with one thread, touches
nothing of the parent's, and ends when the parent is gone.
"""

from __future__ import annotations

import faulthandler
import gc
import io
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch

from datasets.worker_pool import cause_of_death

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT_SECONDS = 120.0
"""For one call: less than a run waits for its readers (``data.stall_seconds``)."""


class DecoderDiedError(ValueError):
    """A call that no process came back from; the message says what became of it."""


class Guard(Generic[P, R]):
    """A function, called in a child process.

    Args:
        function: What to call. Arguments, results and exceptions must be picklable.
        timeout: Seconds after which a call is given up.

    Attributes:
        function: The function itself.
    """

    def __init__(self, function: Callable[P, R], timeout: float = TIMEOUT_SECONDS) -> None:
        self.function, self._timeout = function, timeout
        self._parent = 0  # the process whose child it is: a fork of that process needs one of its own
        self._child = 0
        self._connection: Connection | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result.

        Raises:
            DecoderDiedError: The child died of it, twice, or took too long.
            Exception: Whatever the function raises.
        """
        content, code = _dumps((args, kwargs)), 0
        for _ in range(2):
            answer = self._ask(content)
            if answer is not None:
                kind, value = _loads(answer)
                if kind == "error":
                    raise value
                return value
            code = self._bury()
        raise DecoderDiedError(cause_of_death(code))

    def _ask(self, content: bytes) -> bytes | None:
        """The child's answer; None where it died."""
        if self._connection is None or self._parent != os.getpid():
            self._start()
        assert self._connection is not None
        try:
            self._connection.send_bytes(content)
            if not self._connection.poll(self._timeout):
                self._bury()
                raise DecoderDiedError(f"decoding it took more than {self._timeout:g} s")
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def _start(self) -> None:
        ours, theirs = Pipe()
        gc.collect()  # FFmpeg's threads live until their decoder is collected, and are not copied
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads; see above
            child = os.fork()
        if child == 0:
            ours.close()
            _serve(theirs, self.function)
        theirs.close()
        self._parent, self._child, self._connection = os.getpid(), child, ours

    def _bury(self) -> int:
        """Ends the child; returns its exit code, or minus the signal that ended it."""
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        return -signal.SIGKILL  # somebody else has waited for it

    def close(self) -> None:
        """Ends the child; the next call starts another."""
        if self._connection is not None and self._parent == os.getpid():
            self._bury()
        self._connection = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}  # another process has no child yet

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self.close()


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """The child's life, which ends when the other end is gone."""
    try:
        faulthandler.disable()  # the parent says what became of the clip
        gc.freeze()  # what was the parent's is never collected here
        # A cluster warns every process of a job; the parent ends this one when it has done its last step.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        torch.set_num_threads(1)
        while True:
            args, kwargs = _loads(connection.recv_bytes())
            connection.send_bytes(_answer(function, args, kwargs))
    except BaseException:
        pass
    finally:
        os._exit(0)


def _answer(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return _dumps(("done", function(*args, **kwargs)))
    except Exception as error:
        seen = "".join(traceback.format_tb(error.__traceback__))
        error.add_note(seen)
        try:
            answer = _dumps(("error", error))
            _loads(answer)
        except Exception:  # an error that can't cross over
            answer = _dumps(("error", RuntimeError(f"{type(error).__name__}: {error}\n{seen}")))
        return answer


class _Pickler(ForkingPickler):
    """Tensors as arrays; torch's own way hands over shared memory, which a child that dies may leave behind."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


_loads: Callable[[bytes], Any] = cast(Any, ForkingPickler).loads  # what the stubs have no word of


def _dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 5).dump(value)
    return buffer.getvalue()
