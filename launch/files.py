"""Small JSON files: written whole or not at all, and read without surprise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atomic import open_to_append, write_atomically


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes ``value`` so that a reader sees the old file or the new one, never a part."""
    _make_folder(path.parent)
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is no such file.

    Raises:
        ValueError: The file is there and holds no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): remove it, or restore it from a copy") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object and holds a {type(value).__name__}")
    return value


def _make_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise ValueError(f"{folder} is a symbolic link: nothing is written through one. Remove it")
    folder.mkdir(parents=True, exist_ok=True)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Adds one JSON object as a line of its own."""
    _make_folder(path.parent)
    with open_to_append(path) as file:
        file.write(json.dumps(value).encode() + b"\n")


def last_line(path: Path) -> dict[str, Any] | None:
    """The last complete line's object, or None where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return None
    return json.loads(lines[-1]) if lines else None
