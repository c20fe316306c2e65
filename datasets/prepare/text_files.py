"""Text files as people save them: with a mark at their beginning, other line ends, or in UTF-16."""

from __future__ import annotations

from collections.abc import Callable
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
