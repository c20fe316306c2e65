"""What ``datasets.prepare`` writes and shows: the shard in work, rejects, progress, summary."""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from atomic import write_atomically
from datasets.prepare.encode import Encoded
from datasets.prepare.resume import Progress, SplitJournal
from datasets.prepare.sources import Task
from datasets.shards.manifest import INDEX_NAME, Reject, RejectList, ShardIndex
from datasets.shards.tar import SHARD_PATTERN, ShardWriter

REJECTS_NAME = "rejects.csv"
_HELD_REJECTS = 1000


class OpenShard:
    """The shard being written, and what to record when it is finished.

    Args:
        folder: Where the shards go.
        journal: Where progress is recorded.
        progress: What is finished so far; kept up to date.
    """

    def __init__(self, folder: Path, journal: SplitJournal, progress: Progress) -> None:
        self._folder, self._journal, self._progress = folder, journal, progress
        self._writer: ShardWriter | None = None
        self._rejects: list[Reject] = []
        self._recorded = progress.next_task

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._writer.size if self._writer else 0

    def add(self, task: Task, encoded: Encoded) -> bool:
        """Takes the result of a task; returns whether it is a reject."""
        progress, sample = self._progress, encoded.outcome
        progress.next_task += 1
        if isinstance(sample, Reject):
            self._rejects.append(sample)
            if len(self._rejects) >= _HELD_REJECTS:
                self._note_rejects()
            return True
        if self._writer is None:
            self._writer = ShardWriter(self._folder / SHARD_PATTERN.format(len(progress.shards)))
        self._writer.write(sample)
        progress.fbank.add(encoded.moments)
        progress.duration_seconds += sample.metadata["duration"]
        for i in task.labels:
            progress.label_counts[i] += 1
        return False

    def finish(self) -> str:
        """Gives the shard its name and records everything up to here; returns a line that says so."""
        if self._progress.next_task == self._recorded:
            return ""
        line = ""
        if self._writer is not None:
            info = self._writer.close()
            self._progress.shards.append(info)
            line = f"{info.name}: {info.samples} clips, {info.bytes / 1e6:.1f} MB"
        self._note_rejects()
        self._journal.save(self._progress)
        self._writer, self._recorded = None, self._progress.next_task
        return line

    def _note_rejects(self) -> None:
        self._journal.add_rejects(self._rejects)
        self._rejects = []

    def discard(self) -> None:
        """Removes a shard that was not finished."""
        if self._writer is not None:
            self._writer.discard()


class ProgressBar:
    """A bar on a terminal, a line for each shard elsewhere.

    Args:
        total: Number of clips.
        done: How many are done already.
        rejected: Rejects so far.
        folder: Where the shards go.
    """

    def __init__(self, total: int, done: int, rejected: int, folder: Path) -> None:
        self._rejected = rejected
        self._bar = tqdm(
            total=total, initial=done, unit=" clips", desc=str(folder), disable=None, smoothing=0.05
        )
        self._total, self._done, self._first, self._started = total, done, done, time.monotonic()

    def advance(self, rejected: bool) -> None:
        """Counts one clip."""
        self._done += 1
        self._rejected += rejected
        self._bar.set_postfix(rejects=self._rejected, refresh=False)
        self._bar.update()

    def note(self, line: str) -> None:
        """Says what was finished, where there is no bar."""
        if self._bar.disable and line:
            rate = (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)
            left = (self._total - self._done) / rate / 60 if rate else 0.0
            print(
                f"{line}; {self._done} of {self._total} done, {self._rejected} rejects, "
                f"{rate:.1f} clips/s, {left:.0f} min left",
                flush=True,
            )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def write_rejects(folder: Path, rejects: Iterable[Reject]) -> RejectList:
    """Writes ``rejects.csv``, and returns what the index says of it."""
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()

    def lines() -> Iterator[bytes]:
        yield _csv_line("source", "reason", "detail")
        for reject in rejects:
            counts[reject.reason] += 1
            yield _csv_line(reject.source, reject.reason, reject.detail)

    def hashed() -> Iterator[bytes]:
        for line in lines():
            digest.update(line)
            yield line

    write_atomically(folder / REJECTS_NAME, hashed())
    return RejectList(REJECTS_NAME, digest.hexdigest(), dict(counts.most_common()))


def _csv_line(*cells: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def finished_sets(out: Path) -> list[Path]:
    """Folders with an index: ``out`` itself, or its splits."""
    if (out / INDEX_NAME).is_file():
        return [out]
    return sorted(path.parent for path in out.glob(f"*/{INDEX_NAME}"))


def summary(folder: Path, index: ShardIndex) -> str:
    """What came out, in a few lines."""
    present = sum(label.count > 0 for label in index.labels)
    lines = [
        f"{folder}: {index.samples} clips, {index.duration_seconds / 3600:.2f} h, "
        f"{len(index.shards)} shards, {index.bytes / 1e6:.1f} MB"
        + (f", {present} of {len(index.labels)} classes" if index.labels else "")
    ]
    if index.fbank is not None:
        lines.append(
            f"  fbank mean {index.fbank.mean:.4f}, std {index.fbank.std:.4f} ({index.fbank.clips} clips)"
        )
    if index.rejects is not None and index.rejects.total:
        lines.append(f"  {index.rejects}")
    return "\n".join(lines)
