"""What ``datasets.prepare`` remembers while it works, so that it can be killed at any moment and go on.

In ``OUT/.prepare``: ``job.json`` (settings, vocabulary, splits; written last, so that its presence means the
plan is whole), and for each split a folder with ``plan.jsonl`` (the clips, one a line, in order),
``rejects.jsonl`` (grows), and ``journal.json`` (rewritten after each finished shard). The plan lies on the
disk rather than in memory, and a run that goes on follows it even if files were added to the source in the
meantime.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atomic import fsync, open_to_append, write_atomically
from datasets.prepare.fbank_stats import Moments
from datasets.prepare.sources import PrepareError, Task
from datasets.shards.manifest import PREPARE_FOLDER, Label, Reject
from datasets.shards.tar import ShardInfo


@dataclass
class Progress:
    """How far a split has come: everything up to the end of its last finished shard.

    Attributes:
        next_task: Number of the first clip that is in no finished shard.
        rejects_bytes: Length of the valid part of ``rejects.jsonl``.
        shards: The finished shards.
        label_counts: Samples of each class in them.
        duration_seconds: Their length.
        fbank: Log-mel statistics of those of them that were chosen for it.
    """

    next_task: int = 0
    rejects_bytes: int = 0
    shards: list[ShardInfo] = field(default_factory=list)
    label_counts: list[int] = field(default_factory=list)
    duration_seconds: float = 0.0
    fbank: Moments = field(default_factory=Moments)


@dataclass(frozen=True)
class Job:
    """What a run was started with.

    Attributes:
        settings: Every setting that has a say in what comes out.
        labels: The vocabulary.
        splits: Names of the splits; ``[None]`` for a set without.
    """

    settings: dict[str, Any]
    labels: tuple[Label, ...]
    splits: list[str | None]

    def save(self, out: Path) -> None:
        """Writes it under ``out``; from then on a run there continues instead of planning again."""
        write_atomically(out / PREPARE_FOLDER / "job.json", json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, out: Path) -> Job | None:
        """The unfinished run in ``out``, or None."""
        path = out / PREPARE_FOLDER / "job.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_bytes())
        labels = tuple(Label(**label) for label in content["labels"])
        return cls(content["settings"], labels, content["splits"])


def compare_settings(settings: dict[str, Any], earlier: dict[str, Any], out: Path) -> None:
    """Checks that two runs would write the same set.

    Label and class files of the same content are the same, wherever they lie. The source is compared by its path,
    since what is in it is never read whole, and another folder may hold other videos of the same names.

    Raises:
        PrepareError: Names the first setting that differs and both values.
    """
    settings = json.loads(json.dumps(settings))
    for name in sorted(settings.keys() | earlier.keys()):
        now, then = settings.get(name), earlier.get(name)
        if isinstance(now, dict) and isinstance(then, dict):
            now, then = ({f"{name}.{key}": value for key, value in side.items()} for side in (now, then))
            compare_settings(now, then, out)
        elif now != then and not _same_file(name, settings, earlier):
            raise PrepareError(
                f"{out} was begun with {name} = {then!r}, now it is {now!r}. Go on with the same settings, "
                "or give another folder"
            )


def _same_file(name: str, settings: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Whether a setting that is written differently means the same."""
    now, then = settings.get(name), earlier.get(name)
    if name == "source":
        return os.path.realpath(str(now)) == os.path.realpath(str(then))
    content = f"{name}_sha256"
    return name in ("labels", "classes") and None is not settings.get(content) == earlier.get(content)


class SplitJournal:
    """Plan, rejects and progress of one split.

    Args:
        out: The folder given to ``datasets.prepare``.
        split: The split's name, or None.
    """

    def __init__(self, out: Path, split: str | None) -> None:
        # A split may have any name that a folder can have, so the nameless one has one that no split can
        # have.
        self._folder = out / PREPARE_FOLDER / (split or "no.split")
        self._plan = self._folder / "plan.jsonl"
        self._rejects = self._folder / "rejects.jsonl"
        self._journal = self._folder / "journal.json"

    def create(self, tasks: Iterable[Task], rejects: Iterable[Reject]) -> None:
        """Writes a plan, from its beginning: the clips in order, and what is known to be unusable."""
        self._folder.mkdir(parents=True)
        write_atomically(self._plan, (json.dumps(task).encode() + b"\n" for task in tasks))
        self.add_rejects(rejects)
        self.save(Progress())

    def load(self) -> Progress:
        """Where to go on."""
        content = json.loads(self._journal.read_bytes())
        content["shards"] = [ShardInfo(**shard) for shard in content["shards"]]
        content["fbank"] = Moments(**content["fbank"])
        os.truncate(self._rejects, content["rejects_bytes"])  # what came after it is met again
        return Progress(**content)

    def add_rejects(self, rejects: Iterable[Reject]) -> None:
        """Appends rejects, which count once progress is saved."""
        with open_to_append(self._rejects) as file:
            for reject in rejects:
                file.write(json.dumps([reject.source, reject.reason, reject.detail]).encode() + b"\n")

    def save(self, progress: Progress) -> None:
        """Records that ``progress`` is reached, with all rejects added so far."""
        fsync(self._rejects)
        progress.rejects_bytes = self._rejects.stat().st_size
        write_atomically(self._journal, json.dumps(asdict(progress)).encode())

    def tasks(self, first: int) -> Iterator[Task]:
        """The plan's clips from number ``first`` on."""
        with self._plan.open(encoding="utf-8") as file:
            for i, line in enumerate(file):
                if i >= first:
                    yield Task.parse(line)

    def num_tasks(self) -> int:
        """Number of clips in the plan."""
        return _count_lines(self._plan)

    def rejects(self) -> Iterator[Reject]:
        """All rejects."""
        with self._rejects.open(encoding="utf-8") as file:
            for line in file:
                yield Reject(*json.loads(line))

    def num_rejects(self) -> int:
        """Number of rejects."""
        return _count_lines(self._rejects)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def forget(out: Path) -> None:
    """Forgets an unfinished plan or a finished run."""
    shutil.rmtree(out / PREPARE_FOLDER, ignore_errors=True)
