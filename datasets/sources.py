"""Which clips there are to prepare: the files found, matched with what a label file says about them.

A file belongs to a label row when its name is the row's id, the id and the segment's start (``ID_40.000``,
``ID_40``, ``ID_000361``, ``ID_40000`` in milliseconds), or either with a suffix. Ids may hold ``-``, ``_``
and dots, so the longest id that the name begins with wins.

A file named by its id alone may be the whole video or the segment cut out of it. Where the name doesn't say
(a start in it means: cut), its length decides; see ``datasets.pieces``.
"""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from datasets.index import Label, Reject
from datasets.labels import LabelFile, LabelFileError, LabelRow, Vocabulary

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
DUPLICATE_ID = "duplicate_id"
LABEL_UNKNOWN = "label_unknown"
FILE_MISSING = "file_missing"

Files = Literal["auto", "clips", "videos"]
_START = re.compile(r"[_-](\d+(?:\.\d+)?)(?![0-9A-Za-z])")


class Task(NamedTuple):
    """One clip to prepare. Until ``datasets.pieces`` has looked at the files also a video to cut into clips.

    Attributes:
        source: The file's path, relative to the root of the set (or absolute).
        id: The clip's id.
        labels: Ascending class ids.
        start: Where the clip starts in its video, in seconds; None for the whole file.
        end: Where it ends.
        cut: The file is the segment itself (True), the whole video (False), or whichever its length says
            (None).
    """

    source: str
    id: str
    labels: tuple[int, ...] = ()
    start: float | None = None
    end: float | None = None
    cut: bool | None = False


@dataclass
class Plan:
    """What to do for one split, in the order of doing it.

    Attributes:
        tasks: The clips.
        rejects: What is known to be unusable without opening a file.
    """

    tasks: list[Task] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def list_videos(folder: Path) -> list[str]:
    """Paths of the videos below ``folder``, relative to it, sorted. Links are followed once."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(parent)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = os.path.relpath(parent, folder)
        for name in files:
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith("."):
                found.append(os.path.normpath(os.path.join(relative, name)))
    return sorted(found)


def plan_unlabelled(names: list[str]) -> Plan:
    """A plan of files without labels."""
    return without_duplicates([Task(name, _stem_path(name)) for name in names])


def plan_folders(names: list[str], vocabulary: Vocabulary | None) -> tuple[Plan, Vocabulary]:
    """A plan in which the first folder of each path is its class; files elsewhere are rejected.

    Args:
        names: The files found.
        vocabulary: The classes; None for the folders' names in sorted order.
    """
    folders = {name: _first_folder(name) for name in names}
    vocabulary = vocabulary or Vocabulary(Label(folder) for folder in sorted(set(folders.values()) - {""}))
    tasks, rejects = [], []
    for name, folder in folders.items():
        try:
            tasks.append(Task(name, _stem_path(name), vocabulary.ids([folder])))
        except KeyError:
            detail = f"class {folder!r} is not in the vocabulary" if folder else "lies in no class folder"
            rejects.append(rejected(name, LABEL_UNKNOWN, detail))
    plan = without_duplicates(tasks)
    plan.rejects += rejects
    return plan, vocabulary


def plan_labelled(
    names: list[str] | None, labels: LabelFile, vocabulary: Vocabulary, root: Path, files: Files
) -> tuple[dict[str | None, Plan], list[Reject]]:
    """Matches files with the rows of a label file.

    Args:
        names: The files found, relative to ``root``; None to take the paths of the rows as they are.
        labels: The label file.
        vocabulary: Its classes; empty for a file that only names segments.
        root: Folder that relative paths are relative to.
        files: Whether files are clips already cut, whole videos, or decided one by one.

    Returns:
        A plan per split (None where the file has no splits), and the files that no row names.

    Raises:
        LabelFileError: If no file matches any row; the message shows two of each.
    """
    plans: dict[str | None, Plan] = {split: Plan() for split in labels.splits or [None]}
    if labels.by_path:
        unmatched = _match_paths(names, labels, vocabulary, root, plans)
    else:
        unmatched = _match_ids(names or [], labels, vocabulary, files, plans)
    return plans, unmatched


def shuffled(tasks: list[Task], seed: int) -> list[Task]:
    """The tasks in an order that depends on the seed alone."""
    order = list(tasks)
    random.Random(seed).shuffle(order)
    return order


def _match_paths(
    names: list[str] | None,
    labels: LabelFile,
    vocabulary: Vocabulary,
    root: Path,
    plans: dict[str | None, Plan],
) -> list[Reject]:
    if not any((root / row.name).is_file() for row in labels.rows):
        raise _nothing_matches(labels, names, f"no path of {labels.path}, taken from {root}, exists")
    seen: set[str] = set()
    for row in labels.rows:
        segmented = row.start is not None or row.end is not None
        identifier = _stem_path(row.name) + (f"_{row.start or 0.0:.3f}" if segmented else "")
        _add(plans[row.split], row, os.path.normpath(row.name), identifier, False, vocabulary, seen)
    named = {os.path.normpath(row.name) for row in labels.rows}
    return [_unnamed(name, labels) for name in names or [] if name not in named]


def _match_ids(
    names: list[str], labels: LabelFile, vocabulary: Vocabulary, files: Files, plans: dict[str | None, Plan]
) -> list[Reject]:
    rows: dict[str, list[LabelRow]] = defaultdict(list)
    for row in labels.rows:
        rows[row.name].append(row)
    matches: dict[LabelRow, tuple[str, bool | None]] = {}
    unmatched: list[Reject] = []
    matched_any = False
    for name in names:
        stem = os.path.splitext(os.path.basename(name))[0]
        identifier = next((prefix for prefix in _prefixes(stem) if prefix in rows), None)
        if identifier is None:
            unmatched.append(_unnamed(name, labels))
            continue
        matched_any = True
        chosen, named_start = _rows_meant(rows[identifier], stem[len(identifier) :])
        if not chosen or (files == "clips" and not named_start and len({row.start for row in chosen}) > 1):
            starts = ", ".join(f"{row.start:g}" for row in rows[identifier])
            unmatched.append(
                rejected(
                    name, LABEL_UNKNOWN, f"{labels.path.name} has {identifier} at {starts} s; which is this?"
                )
            )
            continue
        cut = {"clips": True, "videos": False, "auto": True if named_start else None}[files]
        if cut is None and len({row.start for row in chosen}) > 1:
            cut = False  # one file for several segments can only be the whole video
        for row in chosen:
            if row in matches:
                plans[row.split].rejects.append(
                    rejected(name, DUPLICATE_ID, f"{matches[row][0]} is the same clip and comes first")
                )
            else:
                matches[row] = (name, cut)
    if not matched_any:
        raise _nothing_matches(labels, names, f"no file's name begins with an id of {labels.path}")
    seen: set[str] = set()
    for row in labels.rows:
        assert row.start is not None
        identifier = f"{row.name}_{labels.start_format.format(row.start)}"
        if row in matches:
            source, cut = matches[row]
            _add(plans[row.split], row, source, identifier, cut, vocabulary, seen)
        else:
            plans[row.split].rejects.append(rejected(identifier, FILE_MISSING, "no file of this id"))
    return unmatched


def _rows_meant(rows: list[LabelRow], rest: str) -> tuple[list[LabelRow], bool]:
    """The rows of an id that a file name means by what follows the id, and whether it names a start."""
    match = _START.match(rest)
    if not match:
        return rows, False
    start = float(match.group(1))
    return [row for row in rows if row.start in (start, start / 1000)], True


def _add(
    plan: Plan,
    row: LabelRow,
    source: str,
    identifier: str,
    cut: bool | None,
    vocabulary: Vocabulary,
    seen: set[str],
) -> None:
    """Adds a row's clip to the plan, or the reason why it can't be."""
    identifier = printable(identifier)
    if identifier in seen:
        plan.rejects.append(rejected(source, DUPLICATE_ID, f"id {identifier} comes again"))
        return
    try:
        ids = vocabulary.ids(row.labels)
    except KeyError as error:
        plan.rejects.append(rejected(source, LABEL_UNKNOWN, f"class {error} is not in the vocabulary"))
        return
    if len(vocabulary) and not ids:
        plan.rejects.append(rejected(source, LABEL_UNKNOWN, "its row names no class"))
        return
    seen.add(identifier)
    plan.tasks.append(Task(source, identifier, ids, row.start, row.end, cut))


def without_duplicates(tasks: Iterable[Task]) -> Plan:
    """A plan in which each id comes once; later ones are rejects."""
    plan, first = Plan(), {}
    for task in tasks:
        if task.id in first:
            plan.rejects.append(
                rejected(task.source, DUPLICATE_ID, f"{first[task.id]} has the same id {task.id}")
            )
        else:
            first[task.id] = task.source
            plan.tasks.append(task)
    return plan


def _prefixes(stem: str) -> Iterator[str]:
    """The stem and its beginnings that end before neither a letter nor a digit, longest first."""
    yield stem
    for end in range(len(stem) - 1, 0, -1):
        if not stem[end].isalnum():
            yield stem[:end]


def rejected(source: str, reason: str, detail: str) -> Reject:
    """A reject of a file whose name may be no UTF-8."""
    return Reject(printable(source), reason, printable(detail))


def printable(text: str) -> str:
    """The text with bytes that are no UTF-8 (old file systems hold such names) written as escapes."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _stem_path(name: str) -> str:
    return printable(os.path.splitext(os.path.normpath(name))[0])


def _first_folder(name: str) -> str:
    return printable(name.split(os.sep)[0]) if os.sep in name else ""


def _unnamed(name: str, labels: LabelFile) -> Reject:
    return rejected(name, LABEL_UNKNOWN, f"no row of {labels.path.name} names it")


def _nothing_matches(labels: LabelFile, names: list[str] | None, what: str) -> LabelFileError:
    shown = [row.name for row in labels.rows[:2]]
    found = f"files such as {names[:2]}" if names else "no video files"
    return LabelFileError(f"{what}. The label file ({labels.form}) names {shown}; found are {found}")
