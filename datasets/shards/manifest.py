"""The index of a set of shards, ``index.json``: its shards and classes, how they were made, what was left out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atomic import write_atomically
from datasets.shards.names import is_file_name
from datasets.shards.tar import ShardError, ShardInfo
from datasets.untrusted import (
    check_fields,
    finite_number,
    is_text,
    is_writable,
    parse_json,
    read_bounded,
    shown,
    whole_number,
)

INDEX_NAME = "index.json"
PREPARE_FOLDER = ".prepare"  # is there while datasets.prepare is not done
FORMAT = "earsight-shards"
VERSION = 2
LARGEST_INDEX = 32 << 20
"""Bytes. An index of a million clips takes less than one of these 32 MB."""

_DIGEST = re.compile(r"[0-9a-f]{0,64}")
_NAME = (is_file_name, "the name of a file in the set's folder (letters, digits and . , + = @ ~ _ - blank)")
_SHA256 = (
    lambda value: isinstance(value, str) and bool(_DIGEST.fullmatch(value)),
    "hexadecimal digits, 64 at most",
)
_COUNT = (lambda value: whole_number(value, 0, 1 << 50), "a number from 0 to 2^50")
_SHARD = {
    "name": _NAME,
    "samples": (lambda v: whole_number(v, 1, 1 << 31), "1 to 2^31"),
    "bytes": _COUNT,
    "sha256": _SHA256,
}
_TEXT = (lambda value: is_text(value, 1000), "text of at most 1,000 characters")
_LABEL = {
    "name": _TEXT,
    "mid": (lambda value: value is None or is_text(value, 1000), "null or text"),
    "count": _COUNT,
}
_NUMBER = (lambda value: finite_number(value, -1e9, 1e9), "a finite number")
_FBANK = {
    "mean": _NUMBER,
    "std": (lambda value: finite_number(value, 0.0, 1e9), "a finite number"),
    "clips": _COUNT,
}


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_text(reason, 100) and whole_number(count, 0, 1 << 50) for reason, count in value.items()
    )


_REJECTS = {"file": _NAME, "sha256": _SHA256, "counts": (_are_counts, "numbers by reason")}
_LIST = (lambda value: isinstance(value, list), "a list")
_CONTENT = {
    "shards": _LIST,
    "labels": _LIST,
    "fbank": (lambda value: value is None or isinstance(value, dict), "null or an object"),
    "settings": (lambda value: isinstance(value, dict) and is_writable(value), "an object of legal text"),
    "rejects": (lambda value: value is None or isinstance(value, dict), "null or an object"),
    "duration_seconds": (lambda value: finite_number(value, 0.0, 1e15), "a number of seconds"),
}


@dataclass(frozen=True)
class Label:
    """One class of the vocabulary; its id is its place in it.

    Attributes:
        name: Display name.
        mid: Machine id of AudioSet's ontology (``/m/09x0r``), or None.
        count: Samples that have it.
    """

    name: str
    mid: str | None = None
    count: int = 0


@dataclass(frozen=True)
class FbankStats:
    """Mean and standard deviation of the set's log-mel values, measured on ``clips`` of its clips."""

    mean: float
    std: float
    clips: int


@dataclass(frozen=True)
class Reject:
    """An input that went into no shard: where it came from, a stable reason, and what was seen."""

    source: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class RejectList:
    """The inputs that went into no shard, which a file beside the index lists one by one.

    Attributes:
        file: Its name: a CSV of source, reason and detail.
        sha256: Hex digest of it.
        counts: How many there are for each reason.
    """

    file: str
    sha256: str
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of all of them."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.items())
        return f"rejected {self.total}: {reasons} (see {self.file})"


@dataclass(frozen=True)
class ShardIndex:
    """What lies in a folder of shards; ``index.json`` in memory.

    Attributes:
        shards: The shards in order.
        labels: The vocabulary; empty for a set without labels.
        fbank: Log-mel statistics, or None where nobody measured them.
        settings: What the shards were made with.
        rejects: Inputs left out; None where nobody knows, as for shards made elsewhere.
        duration_seconds: Length of all samples together.
    """

    shards: tuple[ShardInfo, ...]
    labels: tuple[Label, ...] = ()
    fbank: FbankStats | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rejects: RejectList | None = None
    duration_seconds: float = 0.0

    @property
    def samples(self) -> int:
        """Number of samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hex digest of what a table depends on: the shards and the vocabulary."""
        shards = [asdict(shard) for shard in self.shards]
        labels = [(label.name, label.mid) for label in self.labels]
        return hashlib.sha256(json.dumps([shards, labels]).encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path | str) -> ShardIndex:
        """Reads ``index.json`` of ``folder``.

        Raises:
            ShardError: The folder is missing, empty, or has no index or one that can't be read.
        """
        folder = Path(folder)
        path = folder / INDEX_NAME
        if not path.is_file():
            raise ShardError(missing_index(folder))
        return cls.load_file(path, str(path))

    @classmethod
    def load_file(cls, path: Path, where: str) -> ShardIndex:
        """Reads an index file that came from ``where``.

        Raises:
            ShardError: It is no such index, or one of a version not known here.
        """
        try:
            content = parse_json(read_bounded(path, LARGEST_INDEX))
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
            if content.get("format") != FORMAT:
                raise ShardError(f'{where} is no index of shards: "format" is not "{FORMAT}"')
            if content.get("version") != VERSION:
                raise ShardError(
                    f"{where} has version {shown(content.get('version'))}, this program reads {VERSION}. Prepare the "
                    "set again, or index its shards again: python -m datasets.index FOLDER --overwrite"
                )
            return _parse(content)
        except (ValueError, OSError) as error:
            if isinstance(error, ShardError):
                raise
            raise ShardError(f"{where} can't be read as an index of shards: {error}") from error

    def save(self, folder: Path | str) -> Path:
        """Writes ``index.json`` into ``folder``, whole or not at all, and returns its path."""
        path = Path(folder) / INDEX_NAME
        content = {"format": FORMAT, "version": VERSION, "samples": self.samples, **asdict(self)}
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
        return path


def _parse(content: dict[str, Any]) -> ShardIndex:
    """An index from JSON; a ``ValueError`` names the field that is missing or illegal."""
    known = {name: content[name] for name in _CONTENT if name in content}
    check_fields(known, _CONTENT, "index")
    shards = [ShardInfo(**check_fields(v, _SHARD, f"shards[{i}]")) for i, v in enumerate(known["shards"])]
    labels = [Label(**check_fields(v, _LABEL, f"labels[{i}]")) for i, v in enumerate(known["labels"])]
    fbank, rejects = known["fbank"], known["rejects"]
    return ShardIndex(
        shards=tuple(shards),
        labels=tuple(labels),
        fbank=FbankStats(**check_fields(fbank, _FBANK, "fbank")) if fbank else None,
        settings=known["settings"],
        rejects=RejectList(**check_fields(rejects, _REJECTS, "rejects")) if rejects else None,
        duration_seconds=known["duration_seconds"],
    )


def is_unfinished(folder: Path) -> bool:
    """Whether ``datasets.prepare`` has yet to write a folder's index."""
    at_work = any((place / PREPARE_FOLDER).is_dir() for place in (folder, folder.parent))
    return at_work and not (folder / INDEX_NAME).is_file()


def missing_index(folder: Path) -> str:
    """Why a folder has no index, for people, and what to do."""
    if not folder.exists():
        return f"the folder of shards {folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is no folder; give the folder that holds the shards and their {INDEX_NAME}"
    if is_unfinished(folder):
        return (
            f"{folder} is not finished: datasets.prepare is at work on it or was interrupted. Wait, or give the "
            "same command again to go on"
        )
    splits = sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}"))
    if splits:
        return f"{folder} has no {INDEX_NAME}, but its folders have ({', '.join(splits)}); give one of those"
    tars = sorted(folder.glob("*.tar"))
    if tars:
        command = f"python -m datasets.index {folder}"
        return f"{folder} has {len(tars)} shards but no {INDEX_NAME}; make it with: {command}"
    return f"{folder} has no {INDEX_NAME} and no shards (*.tar); make some with: python -m datasets.prepare"


def task_label(task: str, name: str) -> str:
    """Class ``name`` of one of several tasks, as it stands in the vocabulary: ``emotion:neutral``."""
    return f"{task}:{name}"


def label_tasks(labels: Sequence[Label]) -> dict[str, list[int]]:
    """The class ids of each task of a vocabulary, in order; those of names without a task under ``""``."""
    tasks: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        task, separator, _ = label.name.partition(":")
        tasks.setdefault(task if separator else "", []).append(i)
    return tasks


def label_ids(labels: Sequence[Label]) -> dict[int | str, int]:
    """Class id of everything that a sample may call a label by: its number, its name, its MID."""
    ids: dict[int | str, int] = {i: i for i in range(len(labels))}
    ids.update({label.mid: i for i, label in enumerate(labels) if label.mid})
    ids.update({label.name: i for i, label in enumerate(labels)})
    return ids
