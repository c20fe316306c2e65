"""Small JSON files: written whole or not at all, and read without surprise."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from atomic import open_to_append, write_atomically

#: Bytes of a file that is read, at most; of a longer history the end is.
LARGEST = 1 << 22


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes ``value`` so that a reader sees the old file or the new one, never a part."""
    _make_folder(path.parent)
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is no such file.

    Raises:
        ValueError: The file is there and holds no JSON object, or can't be read.
    """
    try:
        content = _read_end(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    try:
        value = json.loads(content.decode())
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
    """The object of the last line that holds one, or None: a line may be torn where a process was killed.

    Raises:
        ValueError: The file can't be read.
    """
    try:
        lines = _read_end(path).split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    for line in reversed(lines[:-1]):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def _read_end(path: Path) -> bytes:
    """The last ``LARGEST`` bytes of a regular file.

    Raises:
        ValueError: It is a FIFO, which would be waited for, or another thing that is no file.
        OSError: It can't be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file: remove it")
        file.seek(max(0, status.st_size - LARGEST))
        return file.read(LARGEST)
