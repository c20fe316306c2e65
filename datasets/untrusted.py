"""Reading small files that others made: bounded, and every way in which they can be wrong is a ``ValueError``."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        ValueError: It is a FIFO, device or folder, or larger than ``limit`` bytes.
        OSError: It can't be opened or read.
    """
    # Opening a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than the {limit} bytes that such a file may have")
    return content


def parse_json(content: bytes) -> Any:
    """What JSON in UTF-8 says.

    Raises:
        ValueError: It is no JSON, too deep, or holds numbers that nothing can be made of. Text in it may hold halves of
            surrogate pairs, which `is_text` finds.
    """
    try:
        return json.loads(content.decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def is_text(value: object, longest: int) -> bool:
    """Whether ``value`` is text of at most ``longest`` characters that can be written in UTF-8."""
    return isinstance(value, str) and len(value) <= longest and _encodes(value)


def is_writable(value: object) -> bool:
    """Whether all text in a JSON value can be written in UTF-8."""
    return _encodes(json.dumps(value, ensure_ascii=False))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_number(value: object, smallest: int, largest: int) -> bool:
    """Whether ``value`` is an integer (no truth value) within these bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def finite_number(value: object, smallest: float, largest: float) -> bool:
    """Whether ``value`` is a finite number (no truth value) within these bounds."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # Before math.isfinite: an integer may be too large to become a float.
    return smallest <= value <= largest and math.isfinite(value)


def check_fields(
    values: object, rules: Mapping[str, tuple[Callable[[Any], bool], str]], where: str
) -> dict[str, Any]:
    """The values of a JSON object whose fields are exactly those of ``rules``.

    Args:
        values: The object.
        rules: For each field whether a value is legal, and what a legal one is, for people.
        where: What the object is, for errors.

    Raises:
        ValueError: Names the field that is missing, unknown or illegal.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is no JSON object")
    for name in values.keys() - rules.keys():
        raise ValueError(f"{where} has an unknown field {name[:80]!r}")
    for name, (legal, what) in rules.items():
        if name not in values:
            raise ValueError(f"{where} lacks {name!r}")
        if not legal(values[name]):
            raise ValueError(f"{where}.{name} is {shown(values[name])}: it must be {what}")
    return values


def shown(value: object, longest: int = 80) -> str:
    """A value of any size for a message: its beginning, without control characters."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "an integer of more than 64 bits"
    if isinstance(value, str):
        value = value[: longest + 1]
    elif isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'mapping'} of {len(value)}"
    text = ascii(value) if isinstance(value, str) and not _encodes(value) else repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"
