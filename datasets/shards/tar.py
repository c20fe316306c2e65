"""How a clip lies in a shard: sample keys, member names, and the writer of one tar file.

A shard is a WebDataset tar, readable by any WebDataset reader. A sample is a run of members of one key:
``KEY.json`` (metadata), ``KEY.txt`` (what is said, in UTF-8, where anything is known of it), ``KEY.flac`` (16 kHz
mono sound), ``KEY.00.jpg`` ... ``KEY.09.jpg`` (frames).

Decisions:
    * The same samples give the same bytes: owner, mode and time of every member are fixed.
    * A shard has its final name only once it is whole and on the disk: it is written under a temporary name
      in the same folder, flushed, and renamed.
    * Keys hold no dot: WebDataset cuts a member's name at its first dot.
    * Metadata goes first, so that an indexing pass reads a sample's head and skips the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from atomic import TEMPORARY_SUFFIX, fsync, new_file
from datasets.media import suffixes


class ShardError(ValueError):
    """A shard, its index or its table is missing, damaged, or not what the index says."""


BLOCK = 512
"""Bytes of a tar block: headers and data begin at multiples of it."""

METADATA_SUFFIX = "json"
TEXT_SUFFIX = "txt"
AUDIO_SUFFIXES = tuple(suffix[1:] for suffix in suffixes.SOUND_SUFFIXES)
IMAGE_SUFFIXES = tuple(suffix[1:] for suffix in suffixes.PICTURE_SUFFIXES)
VIDEO_SUFFIXES = tuple(suffix[1:] for suffix in suffixes.VIDEO_SUFFIXES)

SHARD_PATTERN = "shard-{:06d}.tar"

_LEGAL_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_KEY = 80  # leaves room for the longest member suffix in the 100 characters of a plain tar name


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard.

    Attributes:
        key: Its key: ``[A-Za-z0-9_-]+``, unique in the set; see ``make_key``.
        metadata: What ``KEY.json`` holds: ``id``, ``labels``, ``start``, ``duration``, ``frame_times``,
            ``source``.
        members: The other members in order, as (suffix without leading dot, bytes): ``("flac", ...)``,
            ``("00.jpg", ...)``.
    """

    key: str
    metadata: dict[str, Any]
    members: list[tuple[str, bytes]]


@dataclass(frozen=True)
class ShardInfo:
    """What the index says of one shard.

    Attributes:
        name: File name in the set's folder.
        samples: Number of samples.
        bytes: Size of the file.
        sha256: Hex digest of the file.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


def check_key(key: str) -> str:
    """Returns ``key`` if it is a legal sample key.

    Raises:
        ValueError: It holds anything but ``A-Z a-z 0-9 _ -``, is empty, or is too long for a tar name.
    """
    if not _LEGAL_KEY.fullmatch(key):
        raise ValueError(
            f"sample key {key!r} may hold only letters, digits, '_' and '-' (no dot, no slash); "
            f"make_key turns any id into a legal key"
        )
    if len(key) > _MAX_KEY:
        raise ValueError(
            f"sample key {key!r} is longer than {_MAX_KEY} characters; make_key shortens long ids"
        )
    return key


def make_key(identifier: str) -> str:
    """A legal sample key for any id, different for different ids.

    Letters, digits and ``-`` stay. ``_`` begins an escape: ``__`` is an underscore, ``_xHH`` any other byte
    of the id in UTF-8. So two ids never share a key (``a.b`` → ``a_x2eb``, ``a_x2eb`` → ``a__x2eb``). A key
    that would be too long ends in ``_h`` and 96 bits of the SHA-256 of its full form instead.

    Args:
        identifier: Any text, such as a YouTube id or a relative path.

    Raises:
        ValueError: The id is empty.
    """
    if not identifier:
        raise ValueError("a sample needs an id that is not empty")
    key = "".join(_escape(byte) for byte in identifier.encode())
    if len(key) > _MAX_KEY:
        key = f"{key[:50].rstrip('_')}_h{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    return check_key(key)


def _escape(byte: int) -> str:
    character = chr(byte)
    if character == "_":
        return "__"
    return character if _LEGAL_KEY.fullmatch(character) else f"_x{byte:02x}"


class ShardWriter:
    """Writes one shard; a context manager.

    Leaving the ``with`` block finishes the shard (``info`` then describes it); an exception in it removes
    what was written. The same samples give the same bytes.

    Args:
        path: Final path, in a folder that exists. The file there is replaced when the shard is finished.
    """

    def __init__(self, path: Path | str) -> None:
        from webdataset.writer import TarWriter  # imports torch: seconds that only who writes should spend

        self.path = Path(path)
        self.num_samples = 0
        self.info: ShardInfo | None = None
        self._keys: set[str] = set()
        self._temporary = self.path.with_name(self.path.name + TEMPORARY_SUFFIX)
        self._file = _HashingFile(new_file(self._temporary))  # closed in close and discard
        self._tar = TarWriter(
            cast(BinaryIO, self._file),
            user="earsight",
            group="earsight",
            mode=0o444,
            mtime=0,
            encoder=False,
            compress=False,
        )

    @property
    def size(self) -> int:
        """Bytes of the samples written so far, headers included."""
        return self._tar.tarstream.offset

    def write(self, sample: Sample) -> None:
        """Appends a sample.

        Raises:
            ValueError: Its key is illegal or already in this shard, or two of its members share a suffix.
        """
        key = check_key(sample.key)
        if key in self._keys:
            raise ValueError(f"{self.path}: sample key {key!r} is written twice")
        metadata = json.dumps(sample.metadata, ensure_ascii=False, separators=(", ", ": ")).encode()
        members = [(METADATA_SUFFIX, metadata), *sample.members]
        if len({suffix for suffix, _ in members}) < len(members):
            raise ValueError(f"{self.path}: sample {key!r} has two members of one suffix")
        for suffix, data in members:  # one call a member: TarWriter sorts the members of a call by name
            self._tar.write({"__key__": key, suffix: data})
        self._keys.add(key)
        self.num_samples += 1

    def close(self) -> ShardInfo:
        """Finishes the shard: flushes it to the disk and gives it its name.

        Raises:
            ValueError: It holds no sample.
            OSError: The disk is full or fails; the temporary file is removed.
        """
        if self.info is not None:
            return self.info
        try:
            if not self.num_samples:
                raise ValueError(f"{self.path}: a shard needs at least one sample")
            self._tar.close()
            self._file.finish()
            os.replace(self._temporary, self.path)
        except BaseException:
            self.discard()
            raise
        fsync(self.path.parent)
        self.info = ShardInfo(
            self.path.name, self.num_samples, self._file.size, self._file.digest.hexdigest()
        )
        return self.info

    def discard(self) -> None:
        """Removes what was written. Does nothing after ``close``."""
        if self.info is None:
            self._file.abandon()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class _HashingFile:
    """The end of the tar stream: counts and hashes what goes to the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._file = file

    def write(self, data: bytes) -> int:
        if self._file.closed:  # abandoned; the tar stream still empties its buffer when it is collected
            return len(data)
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        # Closing writes the buffer's rest, which fails again on a full disk; the file is removed anyway.
        with contextlib.suppress(OSError):
            self._file.close()
