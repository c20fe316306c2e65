r"""What is printed and logged shows as text: names, labels and ids of others may hold commands for a terminal.

Every program calls `show_control_characters` first. Whatever it then prints, through ``print``, a logger, a bar
or a traceback, has escape sequences and the like spelt out (``\x1b[31m``); line breaks and tabs stay.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

# Control characters of ASCII and Latin-1, line and paragraph separators, what turns the direction of writing around,
# and what stands for bytes of a file name that are no UTF-8 and would end a print with an error.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def spelt_out(text: str) -> str:
    r"""``text`` with control characters as Python writes them: ``\x1b``, ``\u202e``, ``\udc80``."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class _Shown:
    """A text stream that spells out control characters; all but writing is the stream's own.

    Args:
        stream: Where to.
        returns: Whether a carriage return at either end of what is written goes through, as progress bars need it.
    """

    def __init__(self, stream: TextIO, returns: bool) -> None:
        self._stream, self._returns = stream, returns

    def write(self, text: str) -> int:
        """Writes ``text`` spelt out."""
        core = text.strip("\r") if self._returns else text
        before, core, after = text.partition(core) if core else (text, "", "")
        self._stream.write(f"{before}{spelt_out(core)}{after}")
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes ``lines`` spelt out."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show_control_characters() -> None:
    """Makes standard output and error of this process spell out control characters; the second call does nothing."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the locale lacks is spelt out too
        sys.stdout.reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, _Shown):
        sys.stdout = cast(TextIO, _Shown(sys.stdout, returns=False))
    if not isinstance(sys.stderr, _Shown):
        sys.stderr = cast(TextIO, _Shown(sys.stderr, returns=True))
