"""Label files as their sets publish them, brought to one form: rows of (name, segment, labels, split).

Three forms are recognised from their first row, so that nobody has to name one:

* AudioSet's ``*_segments.csv``: ``YTID, start, end, "mid,mid"``, where ``class_labels_indices.csv`` names the
  MIDs;
* VGGSound's CSV: ``id, start, "label", split`` without a header, each segment being ten seconds long;
* any CSV whose header has a column ``path``, and any of ``label`` (several separated by ``;``), ``split``,
  ``start``, ``end``, and ``text`` (what is said). A column ``label.TASK`` holds the labels of one of several tasks:
  ``neutral`` under ``label.emotion`` is the class ``emotion:neutral``. Other columns are ignored.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datasets.prepare.text_files import check_encoding, numbered_cells
from datasets.shards.manifest import task_label
from home_paths import expand_home

AUDIOSET = "AudioSet segments"
VGGSOUND = "VGGSound"
MANIFEST = "CSV with a path column"
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
        numbered = numbered_rows(self.path)
        line, first = next(numbered)
        if self.form == MANIFEST:
            header = [cell.strip().lower() for cell in first]
            _check_header(self.path, line, header)
            return (_manifest_row(self.path, *row, header) for row in numbered)
        parse = _audioset_row if self.form == AUDIOSET else _vggsound_row
        begin = [] if _is_header(first) else [(line, first)]
        return (parse(self.path, *row) for row in itertools.chain(begin, numbered))


def read_label_file(path: str | Path) -> LabelFile:
    """Recognises a label file of any of the three forms.

    Raises:
        LabelFileError: If it is missing or empty, or its form is not recognised.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelFileError(f"{path}: no such label file")
    numbered = numbered_rows(path)
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


def numbered_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a CSV without empty lines and without the comments at its head.

    Raises:
        LabelFileError: It is in UTF-16, or a row can't be read.
    """
    check_encoding(path, LabelFileError)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        at_head, text = True, None  # the column whose cells may have several lines
        for line, cells in numbered_cells(file, path, LabelFileError):
            at_head = at_head and (not cells or cells[0].startswith("#"))
            if cells and not at_head:
                if text is None:
                    names = [cell.strip().lower() for cell in cells]
                    text = names.index("text") if "text" in names else -1
                if any("\n" in cell for place, cell in enumerate(cells) if place != text):
                    raise LabelFileError(
                        f"{path}:{line}: a cell goes on over several lines; is there a quote that is not closed?"
                    )
                yield line, cells


def _check_header(path: Path, line: int, header: list[str]) -> None:
    """Refuses a column that is given twice: one of them would count for nothing."""
    known = {"labels": "label"}
    names = [known.get(name, name) for name in header]
    for name in names:
        counts = name in ("path", "label", "split", "start", "end", "text") or name.startswith(_TASK_COLUMN)
        if counts and names.count(name) > 1:
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
    return found._replace(text=utf8_name(path, row["text"], "the text") if row.get("text") else None)


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
    tokens = tuple(utf8_name(path, label.strip()) for label in labels if label.strip())
    return LabelRow(name, start, end, tokens, split)


def utf8_name(path: Path, name: str, what: str = "class name") -> str:
    """A class name or text as read; paths may be any bytes, these may not.

    Raises:
        LabelFileError: It is no UTF-8.
    """
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
