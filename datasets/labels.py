"""Label files as their sets publish them, brought to one form: rows of (name, segment, labels, split).

Three forms are recognised from their first row, so that nobody has to name one:

* AudioSet's ``*_segments.csv``: ``YTID, start, end, "mid,mid"``, where ``class_labels_indices.csv`` names the
  MIDs;
* VGGSound's CSV: ``id, start, "label", split`` without a header, each segment being ten seconds long;
* any CSV whose header has a column ``path``, and any of ``label`` (several separated by ``;``), ``split``,
  ``start`` and ``end``. Other columns are ignored.

The vocabulary is part of a set: class 17 must mean the same in training and validation. So it comes from the
whole label file (all splits), from AudioSet's class file, or from another set's ``index.json``; never from
the clips found.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from datasets.index import Label

AUDIOSET_CLASSES = "class_labels_indices.csv"
VGGSOUND_SECONDS = 10.0
LABEL_SEPARATOR = ";"
_SAFE_SPLIT = re.compile(r"[A-Za-z0-9_-]+")


class LabelFileError(ValueError):
    """A label or class file that can't be used; the message names file, line and what was expected."""


class LabelRow(NamedTuple):
    """What a label file says about one clip.

    Attributes:
        name: A video's id, or a path (see ``LabelFile.by_path``).
        start: Where the clip starts in its video, in seconds; None for the whole file.
        end: Where it ends, in seconds; None for the end of the file.
        labels: Class names or MIDs as written.
        split: The split it belongs to; None where the file has none.
    """

    name: str
    start: float | None
    end: float | None
    labels: tuple[str, ...]
    split: str | None


@dataclass(frozen=True)
class LabelFile:
    """A label file read.

    Attributes:
        path: The file.
        form: Its form, for messages.
        rows: Its rows in order.
        by_path: Rows name files by path rather than by id.
        start_format: How published file names write a segment's start after the id.
    """

    path: Path
    form: str
    rows: list[LabelRow]
    by_path: bool
    start_format: str = "{:.3f}"

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits, sorted; empty where the file has no split column."""
        return sorted({row.split for row in self.rows if row.split is not None})


class Vocabulary:
    """The classes of a set in the order of their ids.

    Args:
        labels: The classes; names must be unique.

    Raises:
        LabelFileError: If a name or a MID comes twice.
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        self.labels = tuple(labels)
        self._ids: dict[str, int] = {}
        for i, label in enumerate(self.labels):
            for token in {label.name, label.mid or label.name}:
                if self._ids.setdefault(token, i) != i:
                    raise LabelFileError(f"class {token!r} is named twice in the vocabulary")

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        """Class ids, ascending and unique, of names or MIDs.

        Raises:
            KeyError: With the first token that is not in the vocabulary.
        """
        return tuple(sorted({self._ids[token] for token in tokens}))


def read_label_file(path: str | Path) -> LabelFile:
    """Reads a label file of any of the three forms.

    Raises:
        LabelFileError: If the form is not recognised, a row is malformed, or there are no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelFileError(f"{path}: no such label file")
    numbered = _rows(path)
    line, first = next(numbered, (0, []))
    if not first:
        raise LabelFileError(f"{path}: the label file is empty")
    header = [cell.strip().lower() for cell in first]
    if "path" in header:
        rows = [_manifest_row(path, line, header, cells) for line, cells in numbered]
        return _checked(LabelFile(path, "CSV with a path column", rows, by_path=True))
    if header[0] in ("ytid", "id", "youtube_id") and len(header) == 4 and not _is_number(header[1]):
        line, first = next(numbered, (line, []))  # some copies carry a header that is no comment
    if len(first) == 4 and _is_number(first[1]) and _is_number(first[2]):
        rows = [_audioset_row(path, line, first)] + [_audioset_row(path, *row) for row in numbered]
        return _checked(LabelFile(path, "AudioSet segments", rows, by_path=False))
    if len(first) == 4 and _is_number(first[1]):
        rows = [_vggsound_row(path, line, first)] + [_vggsound_row(path, *row) for row in numbered]
        return _checked(LabelFile(path, "VGGSound", rows, by_path=False, start_format="{:06.0f}"))
    raise LabelFileError(
        f'{path}: the form of this label file is not known. Expected AudioSet\'s `YTID, start, end, "mids"`, '
        "VGGSound's `id,start,label,split`, or a header with a column `path` (and label, split, start, end); "
        f"its first row is {','.join(first)!r}"
    )


def read_classes(path: str | Path) -> Vocabulary:
    """Reads a vocabulary.

    Args:
        path: AudioSet's class CSV, the ``index.json`` of another set, or a text file, one name a line.

    Raises:
        LabelFileError: If the file is missing or holds no classes.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelFileError(f"{path}: no such class file")
    if path.suffix == ".json":
        entries = json.loads(path.read_text(encoding="utf-8")).get("labels") or []
        labels = [Label(entry["name"], entry.get("mid")) for entry in entries]
    else:
        rows = [cells for _, cells in _rows(path)]
        if rows and [cell.strip() for cell in rows[0]] == ["index", "mid", "display_name"]:
            labels = [Label(name, mid) for _, mid, name in sorted(rows[1:], key=lambda row: int(row[0]))]
        else:
            lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
            labels = [Label(_utf8(path, line.strip())) for line in lines if line.strip()]
    if not labels:
        raise LabelFileError(f"{path}: no classes in this file")
    return Vocabulary(labels)


def vocabulary_of(labels: LabelFile, classes: str | Path | None) -> Vocabulary:
    """The vocabulary of a label file.

    Args:
        labels: The label file.
        classes: A class file as ``read_classes`` takes it; None for ``class_labels_indices.csv`` beside an
            AudioSet label file, else for all labels of the file in sorted order.

    Raises:
        LabelFileError: If an AudioSet file has no class file, or no row knows a class.
    """
    if classes is None and labels.form == "AudioSet segments":
        classes = labels.path.parent / AUDIOSET_CLASSES
        if not classes.is_file():
            raise LabelFileError(
                f"{labels.path}: AudioSet's classes are named in {AUDIOSET_CLASSES}, which is not beside it; "
                "put it there or name it with --classes"
            )
    used = {token for row in labels.rows for token in row.labels}
    if classes is None:
        return Vocabulary(Label(name) for name in sorted(used))
    vocabulary = read_classes(classes)
    known = {token for label in vocabulary.labels for token in (label.name, label.mid)}
    if used and not used & known:
        raise LabelFileError(
            f"no label of {labels.path} (such as {_two(used)}) is in {classes} (such as "
            f"{_two([label.name for label in vocabulary.labels])})"
        )
    return vocabulary


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a CSV without empty lines and without the comments at its head."""
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, skipinitialspace=True)
        at_head = True
        for cells in reader:
            at_head = at_head and (not cells or cells[0].startswith("#"))
            if cells and not at_head:
                yield reader.line_num, cells


def _manifest_row(path: Path, line: int, header: list[str], cells: list[str]) -> LabelRow:
    if len(cells) != len(header):
        raise LabelFileError(f"{path}:{line}: {len(cells)} cells under a header of {len(header)}")
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["path"]:
        raise LabelFileError(f"{path}:{line}: the path is empty")
    label = row.get("label") or row.get("labels") or ""
    start, end = (_seconds(path, line, row[key]) if row.get(key) else None for key in ("start", "end"))
    return _row(path, line, row["path"], start, end, label.split(LABEL_SEPARATOR), row.get("split") or None)


def _audioset_row(path: Path, line: int, cells: list[str]) -> LabelRow:
    if len(cells) != 4:
        raise LabelFileError(f"{path}:{line}: {len(cells)} cells where AudioSet has YTID, start, end, labels")
    start, end = (_seconds(path, line, cell) for cell in cells[1:3])
    return _row(path, line, cells[0].strip(), start, end, cells[3].split(","), None)


def _vggsound_row(path: Path, line: int, cells: list[str]) -> LabelRow:
    if len(cells) != 4:
        raise LabelFileError(f"{path}:{line}: {len(cells)} cells where VGGSound has id, start, label, split")
    start = _seconds(path, line, cells[1])
    return _row(path, line, cells[0].strip(), start, start + VGGSOUND_SECONDS, [cells[2]], cells[3].strip())


def _row(
    path: Path,
    line: int,
    name: str,
    start: float | None,
    end: float | None,
    labels: list[str],
    split: str | None,
) -> LabelRow:
    if (start is not None and start < 0) or (end is not None and end <= (start or 0.0)):
        raise LabelFileError(
            f"{path}:{line}: the segment {start}-{end} s of {name} is empty or starts before 0"
        )
    # A class name comes a million times: interned it costs eight bytes a row.
    tokens = tuple(sys.intern(_utf8(path, label.strip())) for label in labels if label.strip())
    return LabelRow(name, start, end, tokens, split if split is None else sys.intern(split))


def _checked(labels: LabelFile) -> LabelFile:
    if not labels.rows:
        raise LabelFileError(f"{labels.path}: no rows below the header")
    unnamed = sum(row.split is None for row in labels.rows)
    if 0 < unnamed < len(labels.rows):
        raise LabelFileError(f"{labels.path}: {unnamed} of {len(labels.rows)} rows have an empty split")
    for split in labels.splits:
        if not _SAFE_SPLIT.fullmatch(split):
            raise LabelFileError(
                f"{labels.path}: split {split!r} can't be a folder's name (letters, digits, - and _)"
            )
    return labels


def _utf8(path: Path, name: str) -> str:
    """A class name as read; paths may be any bytes, names may not."""
    if not name.isascii() and any("\udc80" <= character <= "\udcff" for character in name):
        shown = name.encode("utf-8", "surrogateescape")
        raise LabelFileError(f"{path}: class name {shown!r} is no UTF-8; save the file as UTF-8")
    return name


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _seconds(path: Path, line: int, cell: str) -> float:
    if not _is_number(cell):
        raise LabelFileError(f"{path}:{line}: {cell!r} is no number of seconds")
    return float(cell)


def _two(examples: Iterable[str]) -> str:
    """Two examples for a message."""
    return " and ".join(repr(example) for example in sorted(examples)[:2])
