"""Whether a checkpoint still is what was written: sizes and SHA-256 of its files, and a seal on the list of them.

Each rank says what it has written, and all share the work before loading. A folder that all of them see is taken for
granted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atomic import write_atomically
from engine.parallel.world import World

#: The file that holds the list. It is written last and sealed by itself.
STATE = "state.json"
_SEAL = "sha256"

#: Bytes and SHA-256 of a file.
FileDigest = tuple[int, str]


def digest_files(folder: Path, files: Iterable[Path]) -> dict[str, FileDigest]:
    """Bytes and SHA-256 of each of the files, by their names relative to ``folder``."""
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def find_damage(folder: Path, files: Mapping[str, FileDigest], world: World) -> str | None:
    """What is wrong with the first damaged file of ``folder``, or None; every rank calls it and gets the same.

    Args:
        folder: The checkpoint.
        files: What `digest_files` found when it was written.
        world: The processes.
    """
    own = [_damage(folder / name, files[name]) for name in sorted(files)[world.rank :: world.size]]
    return next((found for part in world.gather_objects(own) for found in part if found), None)


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object with its own SHA-256 as its last entry."""
    write_atomically(path, json.dumps({**values, _SEAL: _seal(values)}, indent=1) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote, or an object of an earlier version, which had no seal.

    Raises:
        ValueError: It is missing, no JSON object, or another one than was written.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path.name} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    seal = values.pop(_SEAL, None)
    if seal is not None and seal != _seal(values):
        raise ValueError(f"{path.name} was changed since it was written")
    return values


def check_listed(files: Mapping[str, FileDigest]) -> None:
    """Raises a ``ValueError`` unless what ``state.json`` lists as files are names within the checkpoint."""
    if not isinstance(files, dict):
        raise ValueError(f"{STATE}: files is a {type(files).__name__}, not a mapping of names")
    for name, found in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"{STATE} lists {name[:200]!r}, which is no file within the checkpoint")
        if not (isinstance(found, list | tuple) and [type(value) for value in found] == [int, str]):
            raise ValueError(f"{STATE} lists no size and SHA-256 for {name[:200]!r}")


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path, expected: FileDigest) -> str | None:
    size, digest = expected
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} has {found} bytes, not {size}"
        return None if _digest(path)[1] == digest else f"{path.name} holds other bytes than were written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
