"""Files that are there whole or not at all, also after a power cut, and that are written through no link.

A folder that others made may hold a symbolic link under any name. What is written here goes to a file of its own, which
then takes the name: a link there is replaced, and what it pointed at stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Ends the names of files that are being written.
TEMPORARY_SUFFIX = ".partial"


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Writes a file under a temporary name, flushes it, and renames it to ``path``.

    Args:
        path: The file.
        content: What it is to hold, whole or piece by piece; text becomes UTF-8.

    Raises:
        OSError: The disk is full or fails; nothing is left behind.
    """
    with replacing(path) as file:
        if isinstance(content, str):
            content = content.encode()
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets the name ``path`` when the block ends, and is gone where the block fails.

    Raises:
        OSError: The disk is full or fails; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def refuse_links(folder: Path, skip: Collection[str] = ()) -> None:
    """Raises a ``ValueError`` where a symbolic link lies below a folder that is about to be written to.

    Args:
        folder: The folder, which may be a link itself, or not be there yet.
        skip: Names in it that are not looked into.
    """
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in skip or Path(place, name).is_symlink()]
        for name in (*folders, *files):
            if (path := Path(place, name)).is_symlink():
                raise ValueError(
                    f"{path} is a symbolic link: nothing is written through one. Remove it, or choose another folder"
                )


def fsync(path: Path) -> None:
    """Makes what a file holds, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
