"""Verifies prepared shards against their index.

    python -m datasets.check OUT [--fast]

``--fast`` compares what costs no reading: that every shard is there with its size, that the table belongs
to the index and counts the same clips, and that the list of rejects is the one that the index counts. Without
it every byte is read: SHA-256, tar structure, number of samples, keys and ids, metadata, label counts, whether
the table says the same of each clip, and whether each sound and picture decodes. Ends with exit code 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from datasets.console import print_table, quiet_end
from datasets.decode import DecodeError, decode_audio, decode_frame, decode_text, decode_video
from datasets.guard import DecoderDiedError, Guard
from datasets.index import clip_id
from datasets.prepare.shard_output import finished_sets
from datasets.shards.manifest import Label, ShardIndex, label_ids
from datasets.shards.scan import ScannedSample, scan_shard
from datasets.shards.table import ClipTable
from datasets.shards.tar import (
    AUDIO_SUFFIXES,
    BLOCK,
    IMAGE_SUFFIXES,
    TEXT_SUFFIX,
    VIDEO_SUFFIXES,
    ShardError,
    ShardInfo,
)
from datasets.worker_pool import Failure, WorkerPool
from home_paths import command_line
from terminal import show_control_characters

_DECODED_SIDE = 64  # the whole picture is decoded whatever size is asked for
_SHOWN = 20


@dataclass
class Report:
    """What was found in a shard, or in all shards of a set.

    Attributes:
        samples: Clips that were seen.
        seconds: Their length.
        labels: How often each label was seen, as written in the clips.
        ids: Clip ids of a shard; those of a set would be too many (see ``_Ids``).
        problems: Everything wrong, one sentence each, beginning with the shard.
        complete: Every shard could be read to its end.
    """

    samples: int = 0
    seconds: float = 0.0
    labels: Counter[int | str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    complete: bool = True

    def add(self, other: Report) -> None:
        """Takes in the report of another shard."""
        self.samples += other.samples
        self.seconds += other.seconds
        self.labels += other.labels
        self.problems += other.problems
        self.complete &= other.complete


@dataclass(frozen=True)
class ShardChecker:
    """Reads a shard whole; picklable.

    Attributes:
        folder: The set's folder.
        table: Its table, to be compared with the shards; None where it is of no use itself.
        labels: The set's classes.
    """

    folder: Path
    table: ClipTable | None
    labels: tuple[Label, ...]

    def __call__(self, shard: ShardInfo) -> Report:
        """Compares a shard with what the index says, and decodes everything in it."""
        path = self.folder / shard.name
        report = Report()
        try:
            scan = scan_shard(path)
        except (ShardError, OSError) as error:
            if not isinstance(error, FileNotFoundError):  # _compare_sizes names those
                report.problems.append(str(error))
            report.complete = False
            return report
        if scan.info.samples != shard.samples:
            report.problems.append(f"{path} has {scan.info.samples} samples, the index says {shard.samples}")
        if scan.info.sha256 != shard.sha256:
            report.problems.append(f"{path} has SHA-256 {scan.info.sha256}, the index says {shard.sha256}")
        examine = Guard(_examine)  # a decoder that dies costs the report one clip, not its shard
        with open(path, "rb") as file, closing(examine):
            for sample in scan.samples:
                report.samples += 1
                duration = sample.metadata.get("duration")
                report.seconds += duration if isinstance(duration, int | float) else 0.0
                report.labels.update(sample.labels)
                report.ids.append(clip_id(shard, sample))
                contents = {}
                for suffix, member in sample.members.items():
                    file.seek(member.offset)
                    contents[suffix] = bytearray(file.read(member.size))
                try:
                    found = examine(sample, contents)
                except DecoderDiedError as error:
                    found = [str(error)]
                report.problems += [f"{path}: sample {sample.key}: {it}" for it in found]
        if self.table is not None and scan.info.samples == shard.samples:
            report.problems += self._compare_rows(self.table, shard, scan.samples)
        return report

    def _compare_rows(self, table: ClipTable, shard: ShardInfo, samples: list[ScannedSample]) -> list[str]:
        """Where the table, by which training reads, says other things of the clips than the shard."""
        first = int(table.first_rows[table.shards.index(shard.name)])
        ids = label_ids(self.labels)
        differing = []
        for row, sample in enumerate(samples, start=first):
            labels = tuple(sorted({ids[label] for label in sample.labels if label in ids}))
            places = {
                table.slots[slot]: (extent.offset + BLOCK, extent.blocks)
                for slot, extent in table.members(row).items()
            }
            found = {name: (it.offset, -(-it.size // BLOCK)) for name, it in sample.members.items()}
            if (table.id(row), table.labels(row), places) != (clip_id(shard, sample), labels, found):
                differing.append(sample.key)
        if not differing:
            return []
        return [
            f"{table.path}: other ids, labels or places than in {shard.name} for {len(differing)} clips, such as "
            f"{differing[0]}; rebuild it with: python -m datasets.index {self.folder}"
        ]


class _Ids:
    """The ids of a set, in a temporary file rather than in memory; a context manager."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(
            "", isolation_level=None
        )  # SQLite's name for a file that is removed on closing
        self._db.executescript("PRAGMA temp_store = FILE; BEGIN; CREATE TABLE ids (id BLOB);")

    def __enter__(self) -> _Ids:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, ids: Sequence[str]) -> None:
        """Takes in the ids of a shard."""
        values = ((name.encode("utf-8", "surrogatepass"),) for name in ids)
        self._db.executemany("INSERT INTO ids VALUES (?)", values)

    def repeated(self) -> Iterator[str]:
        """Those that came more than once, sorted."""
        found = self._db.execute("SELECT id FROM ids GROUP BY id HAVING count(*) > 1 ORDER BY id")
        return (name.decode("utf-8", "surrogatepass") for (name,) in found)


def check_set(folder: Path, fast: bool, num_workers: int) -> Report:
    """Checks one set.

    Args:
        folder: Folder with an ``index.json``.
        fast: Read no shard.
        num_workers: Processes that read shards.

    Raises:
        ShardError: The index itself can't be read.
    """
    index = ShardIndex.load(folder)
    report = Report(problems=_compare_table(folder, index))
    table = None if report.problems else ClipTable.of(index, folder)
    report.problems += _compare_sizes(folder, index) + _compare_rejects(folder, index)
    if fast:
        report.samples, report.seconds = index.samples, index.duration_seconds
        return report
    checker = ShardChecker(folder, table, index.labels)
    with _Ids() as ids, WorkerPool(checker, num_workers, preload=["datasets.decode"]) as pool:
        reports = pool.map(index.shards)
        bar = tqdm(reports, total=len(index.shards), unit=" shards", desc=str(folder), disable=None)
        for shard, result in bar:
            if isinstance(result, Failure):
                report.problems.append(f"{folder / shard.name}: {result.detail}")
                report.complete = False
            else:
                report.add(result)
                ids.add(result.ids)
        report.problems += [f"{folder}: id {name!r} is there more than once" for name in ids.repeated()]
    if report.complete:  # else every class of a missing shard's clips would be another problem
        report.problems += _compare_labels(folder, index, report)
    return report


def _examine(sample: ScannedSample, contents: dict[str, bytearray]) -> list[str]:
    """What is wrong with one sample."""
    problems = []
    times = sample.metadata.get("frame_times")
    pictures = [suffix for suffix in contents if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    if times is not None and not isinstance(times, list):
        problems.append(f"frame times are no list: {times!r}")
    elif times is not None and len(times) != len(pictures):
        problems.append(f"{len(pictures)} pictures for {len(times)} frame times")
    for suffix, data in contents.items():
        kind = suffix.rpartition(".")[2]
        try:
            if kind in AUDIO_SUFFIXES:
                decode_audio(data)
            elif kind in IMAGE_SUFFIXES:
                decode_frame(data, _DECODED_SIDE)
            elif suffix == TEXT_SUFFIX:
                decode_text(data)
            elif kind in VIDEO_SUFFIXES:
                decode_video(data, 1, [0], _DECODED_SIDE)
        except DecodeError as error:
            problems.append(f"{suffix}: {error}")
    if sample.metadata.get("absent"):  # made with --partial true, and says itself what it lacks
        return problems
    if not any(suffix.rpartition(".")[2] in (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES) for suffix in contents):
        problems.append("has no sound")
    if not pictures and not any(suffix.rpartition(".")[2] in VIDEO_SUFFIXES for suffix in contents):
        problems.append("has no picture")
    return problems


def _compare_table(folder: Path, index: ShardIndex) -> list[str]:
    try:
        ClipTable.of(index, folder)
    except ShardError as error:
        return [str(error)]
    return []


def _compare_sizes(folder: Path, index: ShardIndex) -> list[str]:
    problems = []
    for shard in index.shards:
        path = folder / shard.name
        if not path.is_file():
            problems.append(f"{path} is in the index but not there")
        elif path.stat().st_size != shard.bytes:
            problems.append(f"{path} has {path.stat().st_size} bytes, the index says {shard.bytes}")
    strangers = {path.name for path in folder.glob("*.tar")} - {shard.name for shard in index.shards}
    return problems + [f"{folder / name} is not in the index" for name in sorted(strangers)]


def _compare_rejects(folder: Path, index: ShardIndex) -> list[str]:
    if index.rejects is None:
        return []
    path = folder / index.rejects.file
    if not path.is_file():
        return [f"{path}, the list of rejects, is in the index but not there"]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == index.rejects.sha256:
        return []
    return [f"{path} has SHA-256 {found}, the index says {index.rejects.sha256}"]


def _compare_labels(folder: Path, index: ShardIndex, report: Report) -> list[str]:
    ids = label_ids(index.labels)
    found: Counter[int] = Counter()
    problems = []
    for label, count in report.labels.items():
        if label in ids:
            found[ids[label]] += count
        else:
            problems.append(f"{folder}: {count} clips have label {label!r}, which the index does not know")
    return problems + [
        f"{folder}: {found[i]} clips of class {label.name!r}, the index says {label.count}"
        for i, label in enumerate(index.labels)
        if found[i] != label.count
    ]


@quiet_end()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.check``."""
    show_control_characters()
    parser = argparse.ArgumentParser(prog="python -m datasets.check", description="Verify shards.")
    parser.add_argument("out", type=Path, help="folder with an index.json, or with a folder for each split")
    parser.add_argument("--fast", action="store_true", help="compare sizes and counts only; read no shard")
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    options = parser.parse_args(command_line(arguments))
    rows = [["set", "shards", "clips", "hours", "GB", "classes", "rejects", "problems"]]
    rejects: list[str] = []
    problems: list[str] = []
    folders = finished_sets(options.out) or [options.out]
    for folder in folders:
        try:
            index = ShardIndex.load(folder)
            report = check_set(folder, options.fast, options.num_workers)
        except ShardError as error:
            if len(folders) == 1:
                raise SystemExit(f"datasets.check: {error}") from error
            problems.append(str(error))
            continue
        problems += report.problems
        present = sum(label.count > 0 for label in index.labels)
        cells = (str(folder), len(index.shards), report.samples, f"{report.seconds / 3600:.2f}")
        rejected = index.rejects.total if index.rejects is not None else 0
        counts = (f"{index.bytes / 1e9:.3f}", present, rejected, len(report.problems))
        if rejected:
            rejects.append(f"{folder}: {index.rejects}")
        rows.append([str(cell) for cell in (*cells, *counts)])
    print_table(rows)
    for line in rejects:
        print(f"  {line}")
    for problem in problems[:_SHOWN]:
        print(f"  {problem}")
    if len(problems) > _SHOWN:
        print(f"  and {len(problems) - _SHOWN} more")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
