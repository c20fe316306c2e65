"""What a published set says of its clips, in one form, and what is wrong with it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from atomic import write_atomically
from datasets.prepare.text_files import check_encoding, numbered_cells

MISSING = "missing"
EMPTY_FILE = "empty_file"
EXTRA = "extra"
DUPLICATE = "duplicate"
ZERO_LENGTH = "zero_length"
KNOWN_BROKEN = "known_broken"
NO_LABEL = "no_label"
MALFORMED = "malformed"


class ManifestError(ValueError):
    """A folder that is not the set it should be; says what was expected where."""


class ManifestRow(NamedTuple):
    """One clip.

    Attributes:
        path: Its file, relative to the set's folder.
        labels: Its class in each task.
        text: What is said; empty where nobody knows.
        split: Its split; empty where the set has none.
        start: Where it begins in its file, in seconds; None for the whole file.
        end: Where it ends.
    """

    path: str
    labels: Mapping[str, str]
    text: str = ""
    split: str = ""
    start: float | None = None
    end: float | None = None


class Problem(NamedTuple):
    """Something wrong with a set: its kind, the row or file, and what was seen."""

    kind: str
    where: str
    detail: str


@dataclass
class Found:
    """The rows of a set and its problems, as a form's reader collects them.

    Attributes:
        folder: The set's folder.
        rows: The manifest's rows, by what must be unique about a clip.
        problems: In the order in which they were found.
        named: The file of each name that `add_named` took in.
    """

    folder: Path
    rows: dict[tuple[str, ...], ManifestRow] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)

    def add(self, row: ManifestRow, where: str) -> None:
        """Takes a row in, once; a row without its file stays, for ``--partial true``, and is a problem."""
        key = (row.path, str(row.start))
        if key in self.rows:
            self.problem(DUPLICATE, where, f"{row.path} has a row already, which is kept")
            return
        self.rows[key] = row
        if empty := [task for task, label in row.labels.items() if not label]:
            self.problem(NO_LABEL, where, f"{row.path} has no {' and no '.join(empty)}")
        try:
            size = os.stat(self.folder / row.path).st_size
        except (OSError, ValueError):  # the latter: a name that no file can have
            self.problem(MISSING, where, f"there is no file {row.path}")
            return
        if not size:
            self.problem(EMPTY_FILE, where, f"{row.path} has 0 bytes")

    def add_named(self, row: ManifestRow) -> None:
        """Takes in a file whose name says everything, once, in whichever folder and with whichever ending it lies."""
        first = self.named.setdefault(Path(row.path).stem, row.path)
        if first != row.path:
            self.problem(DUPLICATE, row.path, f"{first} has the same name and is kept")
        else:
            self.add(row, row.path)

    def problem(self, kind: str, where: str, detail: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(kind, where, detail))

    def note_extra(self, files: Iterable[str], detail: str = "no row names it") -> None:
        """Notes files that no row names."""
        named = {row.path for row in self.rows.values()}
        for name in files:
            if name not in named:
                self.problem(EXTRA, name, detail)


def write_manifest(found: Found, out: Path) -> Path:
    """Writes the manifest, and its problems beside it; returns the latter's path.

    The paths in it are relative to where it lies, as `datasets.prepare` takes them.
    """
    rows = list(found.rows.values())
    tasks = sorted({task for row in rows for task in row.labels})
    optional = {
        "text": [row.text for row in rows],
        **{f"label.{task}": [row.labels.get(task, "") for row in rows] for task in tasks},
        "split": [row.split for row in rows],
        "start": ["" if row.start is None else f"{row.start:g}" for row in rows],
        "end": ["" if row.end is None else f"{row.end:g}" for row in rows],
    }
    columns = {"path": [os.path.relpath(found.folder / row.path, out.parent) for row in rows]}
    columns |= {name: cells for name, cells in optional.items() if any(cells)}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, _csv([list(columns), *map(list, zip(*columns.values(), strict=True))]))
    problems = out.with_name(f"{out.stem}.problems.csv")
    write_atomically(problems, _csv([["kind", "where", "detail"], *map(list, found.problems)]))
    return problems


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_table(path: Path, needed: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV by their columns, each with ``FILE:LINE``.

    Older copies of some sets are in Windows' encoding, or were read as Latin-1 and written as UTF-8, so that an
    apostrophe is a control character (U+0092), which tokenizers drop; both come out right.

    Raises:
        ManifestError: A column is missing or given twice, or a row can't be read.
    """
    rows = read_rows(path)
    first, header = next(rows, (1, []))
    for name in needed:
        if header.count(name) != 1:
            fault = "is given twice" if name in header else f"is missing; it has {header}"
            raise ManifestError(f"{path}:{first}: the column {name!r} {fault}")
    for line, cells in rows:
        row = dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
        yield f"{path.name}:{line}", {name: cell.strip() for name, cell in row.items() if name}


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and cells of each row of a CSV that is not empty.

    Raises:
        ManifestError: A row can't be read, or the file is in UTF-16.
    """
    check_encoding(path, ManifestError)
    text = io.StringIO(clean_text(path.read_bytes()), newline="")
    return (row for row in numbered_cells(text, path, ManifestError) if row[1])


def is_number(cell: str) -> bool:
    """Whether a cell is a whole number of a reasonable length."""
    return cell.isdecimal() and len(cell) <= 9


def clean_text(data: bytes) -> str:
    """Text of a label file, which is UTF-8, or Windows-1252 where it can't be that."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    return text.translate(_WINDOWS)


def _windows_characters() -> dict[int, str]:
    """What the control characters U+0080 ... U+009F stand for that come of reading Windows-1252 as Latin-1."""
    return {code: bytes([code]).decode("cp1252", "ignore") or "\ufffd" for code in range(0x80, 0xA0)}


_WINDOWS = _windows_characters()


def list_media(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Paths below ``folder`` with one of these endings, relative to it, sorted; hidden files not."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def find_one(folder: Path, pattern: str, what: str) -> Path:
    """The one file or folder below ``folder`` of a name.

    Raises:
        ManifestError: There is none, or there are several.
    """
    found = sorted(path for path in folder.rglob(pattern) if not path.name.startswith("."))
    if len(found) != 1:
        listed = f"there are {len(found)}: {', '.join(map(str, found[:3]))}" if found else "there is none"
        raise ManifestError(f"{folder} should hold one {pattern} ({what}); {listed}")
    return found[0]
