"""Files matched with what a label file says about them.

A file belongs to a label row when its name is the row's id, the id and the segment's start (``ID_40.000``,
``ID_40``, ``ID_000361``, ``ID_40000`` in milliseconds), or either with a suffix. Ids may hold ``-``, ``_``
and dots, so the longest id that the name begins with wins.

A file named by its id alone may be the whole video or the segment cut out of it. Where the name doesn't say
(a start in it means: cut), its length decides; see ``datasets.prepare.segments``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datasets.prepare.classes import Vocabulary
from datasets.prepare.labels import LabelFile, LabelFileError, LabelRow
from datasets.prepare.plan_db import Match, Scratch
from datasets.prepare.sources import (
    DUPLICATE_ID,
    LABEL_UNKNOWN,
    Task,
    first_folder,
    printable,
    rejected,
    stem_path,
)
from datasets.shards.manifest import Label, Reject

Files = Literal["auto", "clips", "videos"]
_START = re.compile(r"[_-](\d+(?:\.\d+)?)(?![0-9A-Za-z])")


def plan_unlabelled(scratch: Scratch, listed: bool) -> None:
    """Makes a task of every file, without labels.

    Args:
        scratch: Holds the files; takes the tasks.
        listed: The files were named one by one. Two of these that differ only by their endings are two clips; found
            in a folder they are one in two containers.
    """
    for name in scratch.files():
        scratch.add_task(Task(name, stem_path(name)), None, printable(name) if listed else None)


def plan_folders(scratch: Scratch, vocabulary: Vocabulary | None) -> Vocabulary:
    """Makes tasks in which the first folder of each file's path is its class; files elsewhere are rejected.

    Args:
        scratch: Holds the files; takes the tasks.
        vocabulary: The classes; None for the folders' names in sorted order.

    Returns:
        The vocabulary.
    """
    if vocabulary is None:
        folders = {first_folder(name) for name in scratch.files()}
        vocabulary = Vocabulary(Label(folder) for folder in sorted(folders - {""}))
    for name in scratch.files():
        folder = first_folder(name)
        try:
            scratch.add_task(Task(name, stem_path(name), vocabulary.ids([folder])), None)
        except KeyError:
            detail = f"class {folder!r} is not in the vocabulary" if folder else "lies in no class folder"
            scratch.reject(rejected(name, LABEL_UNKNOWN, detail), None)
    return vocabulary


def plan_labelled(
    scratch: Scratch, labels: LabelFile, vocabulary: Vocabulary, root: Path, files: Files
) -> None:
    """Makes tasks of the rows of a label file. Files that no row names are rejects of no split.

    Args:
        scratch: Holds the rows and, unless the rows' paths are to be taken as they are, the files; takes the
            tasks.
        labels: The label file.
        vocabulary: Its classes; empty for a file that only names segments.
        root: Folder that relative paths are relative to.
        files: Whether files are clips already cut, whole videos, or decided one by one.

    Raises:
        LabelFileError: If no file matches any row; the message shows two of each.
    """
    if labels.by_path:
        _match_paths(scratch, labels, vocabulary, root)
    else:
        _match_ids(scratch, labels, vocabulary, files)


def _match_paths(scratch: Scratch, labels: LabelFile, vocabulary: Vocabulary, root: Path) -> None:
    if not any(os.path.isfile(root / row.name) for row, _, _ in scratch.rows()):
        raise _nothing_matches(scratch, labels, f"no path of {labels.path}, taken from {root}, exists")
    for row, _, _ in scratch.rows():
        segmented = row.start is not None or row.end is not None
        segment = f"_{row.start or 0.0:.3f}" if segmented else ""
        _add(scratch, row, row.name, stem_path(row.name) + segment, False, vocabulary, row.name + segment)
    for name in scratch.unnamed_files():
        scratch.reject(_unnamed(name, labels), None)


def _match_ids(scratch: Scratch, labels: LabelFile, vocabulary: Vocabulary, files: Files) -> None:
    if not sum(_match_file(scratch, labels, name, files) for name in scratch.files()):
        raise _nothing_matches(scratch, labels, f"no file's name begins with an id of {labels.path}")
    for row, source, cut in scratch.rows():
        assert row.start is not None
        identifier = f"{row.name}_{labels.start_format.format(row.start)}"
        if source is None:
            scratch.reject_missing(identifier, row.split)
        else:
            _add(scratch, row, source, identifier, cut, vocabulary)


def _match_file(scratch: Scratch, labels: LabelFile, name: str, files: Files) -> bool:
    """Gives a file to the rows it belongs to; returns whether there is any of its id."""
    stem = os.path.splitext(os.path.basename(name))[0]
    rows = scratch.rows_named(list(_prefixes(stem)))
    if not rows:
        scratch.reject(_unnamed(name, labels), None)
        return False
    identifier = rows[0].name
    chosen, named_start = _rows_meant(rows, stem[len(identifier) :])
    several = len({row.start for row in chosen}) > 1
    if not chosen or (files == "clips" and not named_start and several):
        starts = ", ".join(f"{row.start:g}" for row in rows)
        detail = f"{labels.path.name} has {identifier} at {starts} s; which is this?"
        scratch.reject(rejected(name, LABEL_UNKNOWN, detail), None)
        return True
    cut = {"clips": True, "videos": False, "auto": True if named_start else None}[files]
    if cut is None and several:
        cut = False  # one file for several segments can only be the whole video
    for row in chosen:
        first = scratch.match(row.number, name, cut)
        if first is not None:
            detail = f"{first} is the same clip and comes first"
            scratch.reject(rejected(name, DUPLICATE_ID, detail), row.split)
    return True


def _rows_meant(rows: list[Match], rest: str) -> tuple[list[Match], bool]:
    """The rows of an id that a file name means by what follows the id, and whether it names a start."""
    match = _START.match(rest)
    if not match:
        return rows, False
    start = float(match.group(1))
    return [row for row in rows if row.start in (start, start / 1000)], True


def _add(
    scratch: Scratch,
    row: LabelRow,
    source: str,
    identifier: str,
    cut: bool | None,
    vocabulary: Vocabulary,
    spare: str | None = None,
) -> None:
    """Adds a row's clip to the plan, under its spare id where another file has its own; or why it can't be added."""
    try:
        ids = vocabulary.ids(row.labels)
    except KeyError as error:
        detail = f"class {error} is not in the vocabulary"
    else:
        if ids or not len(vocabulary):
            task = Task(source, printable(identifier), ids, row.start, row.end, cut, row.text)
            scratch.add_task(task, row.split, spare and printable(spare))
            return
        detail = "its row names no class"
    scratch.reject(rejected(source, LABEL_UNKNOWN, detail), row.split)


def _prefixes(stem: str) -> Iterator[str]:
    """The stem and its beginnings that end before neither a letter nor a digit."""
    yield stem
    for end in range(len(stem) - 1, 0, -1):
        if not stem[end].isalnum():
            yield stem[:end]


def _unnamed(name: str, labels: LabelFile) -> Reject:
    return rejected(name, LABEL_UNKNOWN, f"no row of {labels.path.name} names it")


def _nothing_matches(scratch: Scratch, labels: LabelFile, what: str) -> LabelFileError:
    shown = [row.name for row, _, _ in scratch.rows(2)]
    names = list(scratch.files(2))
    found = f"; found are files such as {names}" if names else ""  # none: the label file is the source itself
    return LabelFileError(f"{what}. The label file ({labels.form}) names {shown}{found}")
