"""``python -m fuzz.run --inputs 2000``: damages files of every format and counts what becomes of them.

Each format is read in a process of its own with bounded memory, so that a crash names the format and the damage.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from fuzz.mutations import formats, mutated

MEMORY = 12 << 30  # bytes of address space, libraries included
SLOWEST = 20.0  # seconds for one input


def fuzz_format(name: str, inputs: int, first: int, connection: Connection | None = None) -> Counter[str]:
    """Reads ``inputs`` damaged files of a format; anything but a success or one of its errors is counted by name."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        chosen = dict(formats(Path(folder)))[name]
        for number in range(first, first + inputs):
            if connection is not None:
                connection.send(number)
            started = time.monotonic()
            try:
                chosen.read(mutated(chosen.seeds[number % len(chosen.seeds)], number))
                counts["read"] += 1
            except chosen.errors:
                counts["refused"] += 1
            except Exception as error:
                counts[f"{type(error).__name__} at {number}: {error!s:.80}"] += 1
            if time.monotonic() - started > SLOWEST:
                counts[f"slow at {number}"] += 1
    if connection is not None:
        connection.send(counts)
    return counts


def _bounded(name: str, inputs: int, first: int, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    fuzz_format(name, inputs, first, connection)


def fuzz_apart(name: str, inputs: int) -> Counter[str]:
    """The same in processes apart: an input that ends one is counted, and the next process goes on behind it."""
    total: Counter[str] = Counter()
    first = 0
    while first < inputs:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_bounded, args=(name, inputs - first, first, theirs)
        )
        process.start()
        theirs.close()
        last: int | Counter[str] = first
        try:
            while not isinstance(last, Counter):
                last = ours.recv()
        except EOFError:
            process.join()
            total[f"process ended with {process.exitcode} at {last}"] += 1
            total["refused"] += 0
            first = int(last) + 1 if isinstance(last, int) else inputs
            continue
        process.join()
        total.update(last)
        break
    return total


def main() -> int:
    """Prints a line a format; the exit status tells whether all inputs ended well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="damaged files of each format")
    parser.add_argument("--only", help="one format")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name, _ in formats(Path(folder)) if options.only in (None, name)]
    bad = 0
    for name in names:
        started = time.monotonic()
        counts = fuzz_apart(name, options.inputs)
        others = {what: count for what, count in counts.items() if what not in ("read", "refused")}
        bad += sum(others.values())
        seconds = time.monotonic() - started
        print(
            f"{name:12} read {counts['read']:6} refused {counts['refused']:6} {seconds:6.0f} s {others or ''}",
            flush=True,
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
