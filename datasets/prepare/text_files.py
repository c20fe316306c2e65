"""Text files as people save them: with a mark at their beginning, other line ends, in UTF-16; CSVs and their lines."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def check_encoding(path: Path, error: Callable[[str], Exception]) -> None:
    """Raises ``error`` for a text file in UTF-16, with or without its mark.

    Args:
        path: The file.
        error: Makes the exception of a message.
    """
    with path.open("rb") as file:
        head = file.read(1024)
    # Without a mark every other byte of ordinary text is 0.
    zeros = head[0::2].count(0), head[1::2].count(0)
    if head[:2] in _UTF16_MARKS or (len(head) >= 4 and max(zeros) > len(head) // 3 and min(zeros) == 0):
        raise error(f"{path} is text in UTF-16 (Windows calls it Unicode); save it as UTF-8")


def numbered_cells(
    text: Iterable[str], path: Path, error: Callable[[str], Exception]
) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line and the cells of each row of a CSV, empty rows too.

    Args:
        text: Its lines, with their ends.
        path: The file, which the message names.
        error: Makes the exception of a message where a row can't be read.
    """
    reader = csv.reader(text, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as wrong:
            raise error(
                f"{path}:{line}: this row can't be read ({wrong}); is there a quote in it that is not closed?"
            ) from wrong
        if cells is None:
            return
        yield line, cells
