"""What there is to prepare: a clip on its way from a video to a shard, and the names that files and clips have."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from datasets.media.suffixes import VIDEO_SUFFIXES
from datasets.prepare.text_files import check_encoding
from datasets.shards.manifest import Reject
from home_paths import expand_home

DUPLICATE_ID = "duplicate_id"
LABEL_UNKNOWN = "label_unknown"
FILE_MISSING = "file_missing"


class PrepareError(ValueError):
    """A user's mistake in preparing a set; the message says what to do."""


class Task(NamedTuple):
    """One clip to prepare. Until ``datasets.prepare.segments`` has looked at the files also a video to cut into clips.

    Attributes:
        source: The file's path, relative to the root of the set (or absolute).
        id: The clip's id.
        labels: Ascending class ids.
        start: Where the clip starts in its video, in seconds; None for the whole file.
        end: Where it ends.
        cut: The file is the segment itself (True), the whole video (False), or whichever its length says
            (None).
        text: What is said in it; None where nobody knows.
    """

    source: str
    id: str
    labels: tuple[int, ...] = ()
    start: float | None = None
    end: float | None = None
    cut: bool | None = False
    text: str | None = None

    @classmethod
    def parse(cls, line: str) -> Task:
        """The task that ``json.dumps`` of it gave."""
        source, identifier, labels, *rest = json.loads(line)
        return cls(source, identifier, tuple(labels), *rest)


def is_video(name: str) -> bool:
    """Whether a file's name is that of a video, and not hidden."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(".")


def listed_names(path: Path) -> Iterator[str]:
    """The paths that a text file lists, one a line.

    Raises:
        PrepareError: It is no text file.
    """
    check_encoding(path, PrepareError)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in file:
            if "\0" in line:
                raise PrepareError(
                    f"{path} is neither a video (.mp4, .mkv, ...) nor a text file of paths nor a CSV"
                )
            if line.strip():
                yield os.path.normpath(expand_home(line.strip()))


def rejected(source: str, reason: str, detail: str) -> Reject:
    """A reject of a file whose name may be no UTF-8."""
    return Reject(printable(source), reason, printable(detail))


def rejected_clip(task: Task, reason: str, detail: str) -> Reject:
    """A reject of a clip, which says where in its file it begins."""
    where = f" (at {task.start:g} s)" if task.start and not task.cut else ""
    return rejected(task.source, reason, detail + where)


def printable(text: str) -> str:
    """The text with bytes that are no UTF-8 (old file systems hold such names) written as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def stem_path(name: str) -> str:
    """The path without its suffix: the id of a file that no label row gives another."""
    return printable(os.path.splitext(os.path.normpath(name))[0])


def first_folder(name: str) -> str:
    """The first folder of a relative path; empty where the file lies in none."""
    return printable(name.split(os.sep)[0]) if os.sep in name else ""
