"""Label files as their sets publish them, brought to one form: rows of (name, segment, labels, split).

Three forms are recognised from their first row, so that nobody has to name one:

* AudioSet's ``*_segments.csv``: ``YTID, start, end, "mid,mid"``, where ``class_labels_indices.csv`` names the
  MIDs;
* VGGSound's CSV: ``id, start, "label", split`` without a header, each segment being ten seconds long;
* any CSV whose header has a column ``path``, and any of ``label`` (several separated by ``;``), ``split``,
  ``start``, ``end``, and ``text`` (what is said). A column ``label.TASK`` holds the labels of one of several tasks:
  ``neutral`` under ``label.emotion`` is the class ``emotion:neutral``. Other columns are ignored.

The vocabulary is part of a set: class 17 must mean the same in training and validation. So it comes from the
whole label file (all splits), from AudioSet's class file, or from another set's ``index.json``; never from
the clips found.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.prepare.text_files import check_encoding
from datasets.shards.manifest import Label, task_label
from home_paths import expand_home

AUDIOSET = "AudioSet segments"
VGGSOUND = "VGGSound"
MANIFEST = "CSV with a path column"
AUDIOSET_CLASSES = "class_labels_indices.csv"
VGGSOUND_SECONDS = 10.0
_LONGEST_SECONDS = 1e8  # three years: no time of a video
LABEL_SEPARATOR = ";"
_TASK_COLUMN = "label."
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
        text: What is said in it; None where nobody knows.
    """

    name: str
    start: float | None
    end: float | None
    labels: tuple[str, ...]
    split: str | None
    text: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """A label file whose form is known.

    Attributes:
        path: The file.
        form: Its form, for messages.
        by_path: Rows name files by path rather than by id.
        start_format: How published file names write a segment's start after the id.
    """

    path: Path
    form: str
    by_path: bool
    start_format: str = "{:.3f}"

    def rows(self) -> Iterator[LabelRow]:
        """Reads the rows in order.

        Raises:
            LabelFileError: A row is malformed, or, at the end: there are none, or their splits won't do.
        """
        count, unnamed, splits = 0, 0, set()
        for row in self._parsed():
            yield row
            count += 1
            unnamed += row.split is None
            splits.add(row.split)
        if not count:
            raise LabelFileError(f"{self.path}: no rows below the header")
        if 0 < unnamed < count:
            raise LabelFileError(f"{self.path}: {unnamed} of {count} rows have an empty split")
        for split in sorted(splits - {None}):
            if not _SAFE_SPLIT.fullmatch(split):
                raise LabelFileError(
                    f"{self.path}: split {split!r} can't be a folder's name (letters, digits, - and _)"
                )

    def _parsed(self) -> Iterator[LabelRow]:
        numbered = _rows(self.path)
        line, first = next(numbered)
        if self.form == MANIFEST:
            header = [cell.strip().lower() for cell in first]
            _check_header(self.path, line, header)
            return (_manifest_row(self.path, *row, header) for row in numbered)
        parse = _audioset_row if self.form == AUDIOSET else _vggsound_row
        begin = [] if _is_header(first) else [(line, first)]
        return (parse(self.path, *row) for row in itertools.chain(begin, numbered))


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
    """Recognises a label file of any of the three forms.

    Raises:
        LabelFileError: If it is missing or empty, or its form is not recognised.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelFileError(f"{path}: no such label file")
    numbered = _rows(path)
    _, first = next(numbered, (0, []))
    if not first:
        raise LabelFileError(f"{path}: the label file is empty")
    if "path" in (cell.strip().lower() for cell in first):
        return LabelFile(path, MANIFEST, by_path=True)
    if _is_header(first):
        _, first = next(numbered, (0, first))
    if len(first) == 4 and _is_number(first[1]) and _is_number(first[2]):
        return LabelFile(path, AUDIOSET, by_path=False)
    if len(first) == 4 and _is_number(first[1]):
        return LabelFile(path, VGGSOUND, by_path=False, start_format="{:06.0f}")
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


def vocabulary_of(labels: LabelFile, used: Set[str], classes: str | Path | None) -> Vocabulary:
    """The vocabulary of a label file.

    Args:
        labels: The label file.
        used: All labels of its rows.
        classes: A class file as ``read_classes`` takes it; None for ``class_labels_indices.csv`` beside an
            AudioSet label file, else for all labels of the file in sorted order.

    Raises:
        LabelFileError: If an AudioSet file has no class file, or no row knows a class.
    """
    if classes is None and labels.form == AUDIOSET:
        classes = labels.path.parent / AUDIOSET_CLASSES
        if not classes.is_file():
            raise LabelFileError(
                f"{labels.path}: AudioSet's classes are named in {AUDIOSET_CLASSES}, which is not beside it; "
                "put it there or name it with --classes"
            )
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
    check_encoding(path, LabelFileError)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, skipinitialspace=True, strict=True)
        at_head, text = True, None  # the column whose cells may have several lines
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise LabelFileError(
                    f"{path}:{line}: this row can't be read ({error}); is there a quote in it that is not closed?"
                ) from error
            if cells is None:
                return
            at_head = at_head and (not cells or cells[0].startswith("#"))
            if cells and not at_head:
                if text is None:
                    text = cells.index("text") if "text" in cells else -1
                if any("\n" in cell for place, cell in enumerate(cells) if place != text):
                    raise LabelFileError(
                        f"{path}:{line}: a cell goes on over several lines; is there a quote that is not closed?"
                    )
                yield line, cells


def _check_header(path: Path, line: int, header: list[str]) -> None:
    """Refuses a column that is given twice: one of them would count for nothing."""
    known = {"labels": "label"}
    names = [known.get(name, name) for name in header]
    for name in ("path", "label", "split", "start", "end"):
        if names.count(name) > 1:
            raise LabelFileError(
                f"{path}:{line}: the header has {names.count(name)} columns {name!r}; keep one"
            )


def _manifest_row(path: Path, line: int, cells: list[str], header: list[str]) -> LabelRow:
    if len(cells) != len(header):
        raise LabelFileError(f"{path}:{line}: {len(cells)} cells under a header of {len(header)}")
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["path"]:
        raise LabelFileError(f"{path}:{line}: the path is empty")
    labels = (row.get("label") or row.get("labels") or "").split(LABEL_SEPARATOR)
    for column, cell in row.items():
        if column.startswith(_TASK_COLUMN):
            task = column.removeprefix(_TASK_COLUMN)
            labels += [task_label(task, name.strip()) for name in cell.split(LABEL_SEPARATOR) if name.strip()]
    start, end = (_seconds(path, line, row[key]) if row.get(key) else None for key in ("start", "end"))
    name = os.path.normpath(expand_home(row["path"]))
    found = _row(path, line, name, start, end, labels, row.get("split") or None)
    return found._replace(text=_utf8(path, row["text"], "the text") if row.get("text") else None)


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
    tokens = tuple(_utf8(path, label.strip()) for label in labels if label.strip())
    return LabelRow(name, start, end, tokens, split)


def _utf8(path: Path, name: str, what: str = "class name") -> str:
    """A class name or text as read; paths may be any bytes, these may not."""
    if not name.isascii() and any("\udc80" <= character <= "\udcff" for character in name):
        shown = name.encode("utf-8", "surrogateescape")
        raise LabelFileError(f"{path}: {what} {shown!r} is no UTF-8; save the file as UTF-8")
    return name


def _is_header(cells: list[str]) -> bool:
    """Whether an id form's first row names its columns (some copies carry a header that is no comment)."""
    is_id = cells[0].strip().lower() in ("ytid", "id", "youtube_id")
    return is_id and len(cells) == 4 and not _is_number(cells[1])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _seconds(path: Path, line: int, cell: str) -> float:
    if not _is_number(cell) or not 0 <= float(cell) <= _LONGEST_SECONDS:
        raise LabelFileError(
            f"{path}:{line}: {cell!r} is no number of seconds from 0 to {_LONGEST_SECONDS:g}"
        )
    return float(cell)


def _two(examples: Iterable[str]) -> str:
    """Two examples for a message."""
    return " and ".join(repr(example) for example in sorted(examples)[:2])
