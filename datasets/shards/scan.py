"""One pass over a shard: its samples, where their members lie, and what their metadata says.

A damaged or cut shard is an error with its place, where a tar reader would end there in silence and drop the
rest. Bytes are addressed in the file as it lies on the disk, so compressed tars are refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datasets.shards.tar import BLOCK, METADATA_SUFFIX, ShardError, ShardInfo
from datasets.untrusted import finite_number, is_text, shown


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        name: Its full name.
        plain: Its name stands in the header right before its data (no extended header changes it).
        offset: First byte of its data in the tar.
        size: Length of its data in bytes.
    """

    name: str
    plain: bool
    offset: int
    size: int


class ScannedSample(NamedTuple):
    """A sample found in a shard: its key, members by suffix, metadata, and labels as written there."""

    key: str
    members: dict[str, Member]
    metadata: dict[str, Any]
    labels: list[int | str]


class ShardScan(NamedTuple):
    """What a pass over a shard found. ``info.sha256`` is empty where hashing was not asked for."""

    info: ShardInfo
    samples: list[ScannedSample]


def scan_shard(path: Path, hashing: bool = True) -> ShardScan:
    """Reads a shard once from its beginning to its end.

    Args:
        path: The tar.
        hashing: Also compute its SHA-256; without it the data of all but metadata is skipped over.

    Raises:
        ShardError: It is empty, cut, damaged, compressed, holds a key twice, or metadata that is no JSON object, too
            large, or of which no table can be made.
    """
    if not path.is_file():  # opening a FIFO would wait for its writer
        raise ShardError(f"{path} is no regular file")
    with open(path, "rb") as file:
        source = _Source(path, file, hashlib.sha256() if hashing else None)
        samples = [_read_sample(path, key, group) for key, group in _group(_members(source))]
        digest = source.finish()
    if not samples:
        raise ShardError(f"{path} holds no samples")
    repeated = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
    if repeated:
        raise ShardError(f"{path}: sample key {repeated[0]!r} stands there twice")
    return ShardScan(ShardInfo(path.name, len(samples), source.size, digest), samples)


class _Source:
    """A file read forward, hashed on the way where asked."""

    def __init__(self, path: Path, file: BinaryIO, digest: Any) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.position = 0
        self._file = file
        self._digest = digest

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        if self._digest is not None:
            self._digest.update(data)
        self.position += len(data)
        return data

    def skip(self, count: int) -> None:
        if self._digest is None:
            self._file.seek(count, 1)
            self.position += count
        while self._digest is not None and count > 0:
            count -= len(self.read(min(count, 1 << 20))) or count

    def finish(self) -> str:
        if self._digest is None:
            return ""
        self.skip(self.size - self.position)
        return self._digest.hexdigest()


_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,10}) ([^=]+)=")
_KEPT = (METADATA_SUFFIX, "cls")  # members whose content the pass needs
_LARGEST_KEPT, _LARGEST_NAME = 16 << 20, 1 << 20  # bytes of those, and of what only names the next member
_MAX_CLASSES = 100_000
_LONGEST_ID, _LONGEST_LABEL = 4096, 1000
_LONGEST_SECONDS = 1e8


def _members(source: _Source) -> Iterator[tuple[Member, bytes]]:
    """All regular files of the tar, with the content of those that hold metadata."""
    long_name: str | None = None
    while True:
        at = source.position
        block = source.read(BLOCK)
        if len(block) == BLOCK and block.count(0) == BLOCK:
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ShardError(_damage(source, at, str(error))) from error
        if header.size < 0:  # the field can say so
            raise ShardError(_damage(source, at, f"member {header.name!r} of {header.size} bytes"))
        padded = -(-header.size // BLOCK) * BLOCK
        if source.position + padded > source.size:
            raise ShardError(f"{source.path} is cut off at byte {source.size}, inside member {header.name!r}")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            content = _content(source, header.name, header.size, _LARGEST_NAME)
            name = content.rstrip(b"\0") if header.type == tarfile.GNUTYPE_LONGNAME else _pax_path(content)
            long_name = name.decode("utf-8", "surrogateescape") if name else long_name
            continue
        if header.type in _PLAIN_TYPES:
            member = Member(long_name or header.name, long_name is None, source.position, header.size)
            if split_name(member.name)[1] in _KEPT:
                yield member, _content(source, member.name, header.size, _LARGEST_KEPT)
            else:
                yield member, b""
                source.skip(padded)
        else:
            source.skip(padded)
        long_name = None


def _content(source: _Source, name: str, size: int, largest: int) -> bytes:
    if size > largest:
        raise ShardError(f"{source.path}: member {name[:200]!r} has {size} bytes; it may have {largest}")
    return source.read(-(-size // BLOCK) * BLOCK)[:size]


def _pax_path(content: bytes) -> bytes | None:
    """The ``path`` record of a pax header: records are ``LENGTH KEY=VALUE`` and a newline."""
    at = 0
    while (match := _PAX_RECORD.match(content, at)) is not None:
        at += int(match[1])
        if at <= match.end():  # no record ends before its value
            return None
        if match[2] == b"path":
            return content[match.end() : at - 1]
    return None


def _damage(source: _Source, at: int, detail: str) -> str:
    if at >= source.size:
        return f"{source.path} is cut off: it ends at byte {source.size} without the end mark of a tar"
    if at == 0:
        return f"{source.path} is no tar ({detail}); compressed tars must be unpacked first (gunzip)"
    return f"{source.path} is damaged: no tar header at byte {at} of {source.size} ({detail})"


class _Group(NamedTuple):
    members: dict[str, Member]
    contents: dict[str, bytes]


def _group(members: Iterable[tuple[Member, bytes]]) -> Iterator[tuple[str, _Group]]:
    """Gathers runs of members that share a key, as WebDataset does."""
    current, group = None, _Group({}, {})
    for member, content in members:
        key, suffix = split_name(member.name)
        if not suffix:
            continue
        if key != current:
            if current is not None:
                yield current, group
            current, group = key, _Group({}, {})
        group.members[suffix] = member
        group.contents[suffix] = content
    if current is not None:
        yield current, group


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-case suffix of a member's name, cut at its last part's first dot as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower() if stem else ""


def _read_sample(path: Path, key: str, group: _Group) -> ScannedSample:
    for name in (key, *group.members):
        if not is_text(name, _LONGEST_ID):
            raise ShardError(f"{path}: the name {shown(name)} of a member is no UTF-8, or too long")
    metadata: Any = {}
    if METADATA_SUFFIX in group.contents:
        try:
            metadata = json.loads(group.contents[METADATA_SUFFIX])
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{path}: {METADATA_SUFFIX} of sample {key!r} can't be read: {error}") from error
        if not isinstance(metadata, dict):
            raise ShardError(f"{path}: {METADATA_SUFFIX} of sample {key!r} is no object")
    _check_fields(f"{path}: {METADATA_SUFFIX} of sample {key!r}", metadata)
    labels: Any = metadata.get("labels", metadata.get("label", []))
    if "cls" in group.contents and not labels:
        text = group.contents["cls"].decode("utf-8", "replace").strip()
        labels = int(text) if text.isdecimal() and len(text) <= _LONGEST_LABEL else text
    labels = [labels] if isinstance(labels, int | str) else [] if labels is None else labels
    if isinstance(labels, list):
        labels = [label for label in labels if label is not None]
    if not isinstance(labels, list) or not all(isinstance(label, int | str) for label in labels):
        raise ShardError(f"{path}: labels of sample {key!r} are neither names nor numbers: {shown(labels)}")
    for label in labels:
        # A negative one is refused where classes are counted.
        if not (label < _MAX_CLASSES if isinstance(label, int) else is_text(label, _LONGEST_LABEL)):
            raise ShardError(
                f"{path}: label {shown(label)} of sample {key!r} must be a number below {_MAX_CLASSES} or a name in "
                f"UTF-8 of at most {_LONGEST_LABEL} characters"
            )
    return ScannedSample(key, group.members, metadata, labels)


def _check_fields(where: str, metadata: dict[str, Any]) -> None:
    """Refuses what no table can hold of the fields that count; others may say anything."""
    id, duration, times = (metadata.get(name) for name in ("id", "duration", "frame_times"))
    if id and not (is_text(id, _LONGEST_ID) or finite_number(id, -(2.0**63), 2.0**63)):
        raise ShardError(f"{where}: id {shown(id)} is no text in UTF-8 of at most {_LONGEST_ID} characters")
    if isinstance(duration, int | float) and not finite_number(duration, 0.0, _LONGEST_SECONDS):
        raise ShardError(f"{where}: duration {shown(duration)} is no number from 0 to {_LONGEST_SECONDS:g}")
    for time in times if isinstance(times, list) else ():
        if isinstance(time, int | float) and not finite_number(time, -_LONGEST_SECONDS, _LONGEST_SECONDS):
            raise ShardError(f"{where}: {shown(time)} in frame_times is no number of seconds")
