"""The one way in which files are written: whole or not at all, also after a power cut, and through no link.

A folder that others made may hold a symbolic link under any name. What is written here goes to a file of its own, which
then takes the name: a link there is replaced, and what it pointed at stays as it is. A test walks the code for files
that are written otherwise.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
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
    try:
        with new_file(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def new_file(path: Path) -> BinaryIO:
    """A new file of that name, in the place of whatever has it."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


@contextmanager
def replacing_by_name(path: Path) -> Iterator[Path]:
    """The same for libraries that open files themselves: the name of a file that is to be written.

    It has the name's own ending, and lies in a new folder beside ``path`` which nobody else can know.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name[:80]}.", suffix=TEMPORARY_SUFFIX, dir=path.parent
    ) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
    fsync(path.parent)


def open_to_append(path: Path) -> BinaryIO:
    """A file of lines to write to behind what it holds; unbuffered, so that each ``write`` is whole or has an error.

    A line that an earlier process left unfinished is ended first, so that the next one is a line of its own.

    Raises:
        OSError: It is a symbolic link or no regular file, or can't be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
            os.write(descriptor, b"\n")
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "ab", buffering=0)


def refuse_links(folder: Path, skip: Collection[str] = (), *, itself: bool = False) -> None:
    """Raises a ``ValueError`` where a folder that is about to be written to holds more than files and folders.

    A symbolic link leads elsewhere, and opening a FIFO waits for another process. A link to a file beside it does not
    lead elsewhere, and is left: submitit keeps one for each script that it submits.

    Args:
        folder: The folder, which need not be there yet.
        skip: Names in it that are not looked into.
        itself: Whether the folder must be no link either; one whose name a person gave may be.
    """
    if itself and folder.is_symlink():
        raise _link_error(folder)
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in skip or Path(place, name).is_symlink()]
        for name in (*folders, *files):
            path = Path(place, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # another process's file that was being written
                continue
            if stat.S_ISLNK(mode):
                if name not in folders and path.resolve().parent == Path(place).resolve():
                    continue  # what it leads to is looked at itself
                raise _link_error(path)
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(
                    f"{path} is neither a file nor a folder: remove it, or choose another folder"
                )


def _link_error(path: Path) -> ValueError:
    return ValueError(
        f"{path} is a symbolic link: nothing is written through one. Remove it, or choose another folder"
    )


def fsync(path: Path) -> None:
    """Makes what a file holds, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Makes a folder that is to be written to, and makes sure that it can be.

    Raises:
        ValueError: It can't be; says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        dangling = next(
            (path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None
        )
        why = f"{dangling} is a symbolic link that leads nowhere" if dangling else error.strerror
        raise ValueError(
            f"{folder} can't be written to: {why}. Name another folder, or see to this one"
        ) from error
