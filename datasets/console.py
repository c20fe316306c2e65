"""What commands have in common in what they print."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in columns, the first left and the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


@contextmanager
def quiet_end() -> Iterator[None]:
    """Where what is printed goes to a program that has ended (``| head``), this one ends too, and says nothing."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        raise SystemExit(128 + signal.SIGPIPE) from None
