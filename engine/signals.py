"""SIGTERM and SIGUSR1, from the first moment of a program on: what they ask for is never lost, and never too early.

While a program starts there is nothing to save, so it ends at once and says so in ``status.json``. From then on a
signal is only noted: the training loop and the evaluation look for it where they can stop.

Nothing heavy is imported here: the programs call `STOP.listen` before they import torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Whether somebody asks this process to stop.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._number = 0
        self._at_start: Callable[[int], object] | None = None
        self._listening = False

    def listen(self) -> None:
        """Notes the signals from now on; called again it changes nothing.

        A thread notes them too. Python calls handlers between two instructions of the main thread alone, which may
        wait for minutes in a library for another process.
        """
        for number in NUMBERS:
            signal.signal(number, self._note)
        if self._listening:
            return
        self._listening = True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def while_starting(self, end: Callable[[int], object]) -> None:
        """From now on, and for what has come already, a signal calls ``end`` with its number."""
        self._at_start = end
        if self.requested:
            end(self._number)

    def started(self) -> None:
        """From now on a signal is only noted."""
        self._at_start = None

    def clear(self) -> None:
        """Forgets what has come."""
        self.requested = False

    def ignore(self) -> None:
        """Signals say what is being done already: none may end a process between writing its status and its exit."""
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number, self.requested = number, True

    def _watch(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number in NUMBERS:
                    self._number, self.requested = number, True
                    end = self._at_start
                    if end is not None:
                        end(number)


STOP = StopSignals()
