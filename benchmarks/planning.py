"""What it costs to plan a set and to make its table: seconds and memory, by the number of clips.

    python -m benchmarks.planning [--clips 10000 100000 1000000] [--scratch FOLDER]

Makes empty files and label files of the published forms, and plans them as ``datasets.prepare`` does (nothing is
decoded); then a table of clips with twelve members. Each case runs in a process of its own, whose largest resident
memory is reported as growth over what it was after its imports. Prints a table, and as its last line the same as
JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from atomic import write_atomically
from datasets.prepare.config import PrepareConfig
from datasets.prepare.planning import make_plan
from datasets.prepare.sources import Task
from datasets.shards.table_builder import TableBuilder, TableRow
from home_paths import command_line

CLASSES = 527
FILES_A_FOLDER = 1000
CLIPS_A_SHARD = 500


def _identifier(number: int) -> str:
    """Eleven characters, as video ids are, in no order."""
    return f"{number * 2654435761 % (1 << 40):010x}-"


def _class(number: int) -> str:
    return f"/m/{number % CLASSES:03d}"


def _no_lengths(tasks: Iterable[Task]) -> Iterator[float | None]:
    """Files of the benchmark are empty: none has a length."""
    return (None for _ in tasks)


def _make_files(folder: Path, clips: int) -> Path:
    videos = folder / "videos"
    for first in range(0, clips, FILES_A_FOLDER):
        part = videos / f"{first // FILES_A_FOLDER:05d}"
        part.mkdir(parents=True)
        for i in range(first, min(first + FILES_A_FOLDER, clips)):
            os.close(os.open(part / f"{_identifier(i)}_30.000.mp4", os.O_CREAT | os.O_WRONLY))
    return videos


def _make_labels(folder: Path, clips: int) -> None:
    rows = (f'{i},{_class(i)},"class {i}"' for i in range(CLASSES))
    _write_lines(folder / "class_labels_indices.csv", ["index,mid,display_name", *rows])
    _write_lines(
        folder / "segments.csv",
        (f'{_identifier(i)}, 30.000, 40.000, "{_class(i)},{_class(7 * i + 1)}"' for i in range(clips)),
    )
    paths = (f"{i // FILES_A_FOLDER:05d}/{_identifier(i)}_30.000.mp4,{_class(i)}" for i in range(clips))
    _write_lines(folder / "paths.csv", itertools.chain(["path,label"], paths))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, (f"{line}\n".encode() for line in lines))


def _plan(folder: Path, clips: int, labels: str | None) -> None:
    config = PrepareConfig(
        source=str(folder / "videos"),
        out=str(folder / "out"),
        labels=None if labels is None else str(folder / labels),
    )
    make_plan(config, _no_lengths)
    shutil.rmtree(folder / "out")


def _table(folder: Path, clips: int) -> None:
    members = [("json", 200), ("flac", 150_000), *((f"{i:02d}.jpg", 30_000 + 999 * i) for i in range(10))]
    extents, at = [], 512
    for suffix, size in members:
        extents.append((suffix, at, size))
        at += 512 * (1 - (-size // 512))
    with TableBuilder(folder) as builder:
        for first in range(0, clips, CLIPS_A_SHARD):
            rows = []
            for i in range(first, min(first + CLIPS_A_SHARD, clips)):
                offset = (i - first) * at
                placed = [(suffix, start + offset, size) for suffix, start, size in extents]
                rows.append(TableRow(_identifier(i), _identifier(i), [i % CLASSES], 10.0, placed))
            builder.add(f"shard-{first // CLIPS_A_SHARD:06d}.tar", rows)
        builder.save("benchmark", CLASSES)


CASES: dict[str, Callable[[Path, int], None]] = {
    "rows by id": lambda folder, clips: _plan(folder, clips, "segments.csv"),
    "rows by path": lambda folder, clips: _plan(folder, clips, "paths.csv"),
    "no labels": lambda folder, clips: _plan(folder, clips, None),
    "table": _table,
}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _run_case(name: str, folder: Path, clips: int) -> None:
    before, began, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    CASES[name](folder, clips)
    seconds, cpu_seconds, peak = time.perf_counter() - began, time.process_time() - cpu, _peak_mb()
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "mb": peak - before, "peak_mb": peak}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description="Time planning.")
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--scratch", type=Path, help="folder on the disk to use (default: the system's temporary one)"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(command_line(arguments))
    if options.case is not None:
        _run_case(options.case, options.scratch, options.clips[0])
        return
    summary: list[dict[str, object]] = []
    print(f"{'clips':>10s}  {'case':14s}{'seconds':>10s}{'processor':>10s}{'MB grown':>10s}{'MB peak':>10s}")
    for clips in options.clips:
        with TemporaryDirectory(dir=options.scratch) as name:
            folder = Path(name)
            _make_files(folder, clips)
            _make_labels(folder, clips)
            for case in CASES:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.planning",
                    f"--scratch={folder}",
                    f"--clips={clips}",
                ]
                run = subprocess.run([*command, f"--case={case}"], check=True, stdout=subprocess.PIPE)
                found = json.loads(run.stdout.splitlines()[-1])
                cells = "".join(f"{value:10.1f}" for value in found.values())
                print(f"{clips:10d}  {case:14s}{cells}", flush=True)
                summary.append({"clips": clips, "case": case, **{key: round(found[key], 2) for key in found}})
    machine = {"cpu": platform.processor(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "planning", "cases": summary, **machine}))


if __name__ == "__main__":
    main()
