"""The vocabulary of a set, from wherever its classes are named.

It is part of a set: class 17 must mean the same in training and validation. So it comes from the whole label file (all
splits), from AudioSet's class file, or from another set's ``index.json``; never from the clips found.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

from datasets.prepare.labels import AUDIOSET, LabelFile, LabelFileError, numbered_rows, utf8_name
from datasets.prepare.text_files import check_encoding
from datasets.shards.manifest import Label
from datasets.untrusted import is_text, parse_json, read_bounded, shown

AUDIOSET_CLASSES = "class_labels_indices.csv"
_AUDIOSET_COLUMNS = ["index", "mid", "display_name"]
_LARGEST_FILE = 32 << 20  # bytes
_LONGEST_NAME = 1000  # as in an index


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


def read_classes(path: str | Path) -> Vocabulary:
    """Reads a vocabulary.

    Args:
        path: AudioSet's class CSV, the ``index.json`` of another set, the ``classes.json`` of a run, or a text file,
            one name a line.

    Raises:
        LabelFileError: If the file is missing, damaged, or holds no classes.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelFileError(f"{path}: no such class file")
    check_encoding(path, LabelFileError)
    try:
        content = read_bounded(path, _LARGEST_FILE)
        if path.suffix == ".json":
            labels = _json_classes(path, parse_json(content))
        else:
            text = content.decode("utf-8-sig", "surrogateescape")
            # str.splitlines would also cut names apart, at U+2028 or U+0085.
            lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
            first = next((line for line in lines if not line.startswith("#")), "")
            if [cell.strip(' "') for cell in first.split(",")] == _AUDIOSET_COLUMNS:
                labels = _audioset_classes(path)
            else:
                labels = [Label(utf8_name(path, line.strip())) for line in lines]
    except LabelFileError:
        raise
    except ValueError as error:
        raise LabelFileError(f"{path} can't be read: {error}") from error
    if not labels:
        raise LabelFileError(f"{path}: no classes in this file")
    return Vocabulary(labels)


def _json_classes(path: Path, content: Any) -> list[Label]:
    """Of an index (``labels``, each with ``name`` and ``mid``), or of a list of names, as runs keep it."""
    entries = (content.get("labels") or []) if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise LabelFileError(f"{path}: expected the index.json of a set, or a list of names")
    labels = []
    for number, entry in enumerate(entries):
        name, mid = (entry.get("name"), entry.get("mid")) if isinstance(entry, dict) else (entry, None)
        if (
            not isinstance(name, str)
            or not is_text(name, _LONGEST_NAME)
            or not (mid is None or is_text(mid, _LONGEST_NAME))
        ):
            raise LabelFileError(f"{path}: class {number} is {shown(entry)}: it must have a name")
        labels.append(Label(name, mid))
    return labels


def _audioset_classes(path: Path) -> list[Label]:
    rows: list[tuple[int, Label]] = []
    for line, cells in itertools.islice(numbered_rows(path), 1, None):
        if len(cells) != len(_AUDIOSET_COLUMNS) or not (cells[0].isdecimal() and len(cells[0]) <= 9):
            raise LabelFileError(f"{path}:{line}: {shown(','.join(cells))} is not index, mid, display_name")
        rows.append((int(cells[0]), Label(utf8_name(path, cells[2]), utf8_name(path, cells[1], "MID"))))
    return [label for _, label in sorted(rows, key=lambda row: row[0])]


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


def _two(examples: Iterable[str]) -> str:
    """Two examples for a message."""
    return " and ".join(repr(example) for example in sorted(examples)[:2])
