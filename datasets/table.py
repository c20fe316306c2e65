"""The table of a set: for each clip where its bytes lie, its id, labels and duration; memory-mapped.

A file of columns (``index.table``) beside ``index.json``, about 60 bytes a clip of ten frames and an
AudioSet id, so that two million clips open in milliseconds and all workers of a machine share the same pages.

Decisions:
    * Tar data lie in blocks of 512 bytes, so a member takes a block count (two bytes, four where a member is
      larger than 32 MB). Its exact size stands in the header before its data, which is read along with it
      and compared.
    * A sample's members lie one after the other, so one start a sample is enough. Where shards made
      elsewhere have other things in between, a column of offsets is added.
    * Columns are slots, one for each member suffix of the set (``json, flac, 00.jpg, ...``).
    * The table carries the fingerprint of the index that it was made for; a stale one is refused.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.durable import write_atomically
from datasets.shards import (
    AUDIO_SUFFIXES,
    BLOCK,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ShardError,
)

TABLE_NAME = "index.table"

_MAGIC = b"earsight-table-1\n"
_ALIGNMENT = 64
_MAX_SLOTS = 512


class TableRow(NamedTuple):
    """One sample as the builder takes it.

    Attributes:
        key: Its key in the shard.
        id: The clip's id.
        labels: Class ids, ascending.
        duration: Seconds, 0 where unknown.
        members: (suffix, first byte of its data, size in bytes) in the order in which they lie in the shard.
        plain: The members' names stand in the headers right before their data.
    """

    key: str
    id: str
    labels: list[int]
    duration: float
    members: list[tuple[str, int, int]]
    plain: bool = True


class Extent(NamedTuple):
    """Where a member lies: its header at byte ``offset`` of the shard, then ``blocks`` blocks of data."""

    offset: int
    blocks: int


class ClipTable:
    """The clips of a set, in the order in which they lie in its shards. Rows count from 0 over all shards.

    Picklable by its path: a worker process maps the file again.

    Attributes:
        fingerprint: ``ShardIndex.fingerprint`` of the index it belongs to.
        shards: Shard names in order.
        num_classes: Size of the vocabulary.
        plain: All names stand in the headers right before the data, so that a reader can check them.
        durations: (rows,) float32, seconds.
        key_checksums: (rows,) uint32, CRC-32 of each sample's key.
        label_offsets: (rows + 1,); the labels of row r are
            ``label_ids[label_offsets[r]:label_offsets[r + 1]]``.
        label_ids: Class ids of all clips, one after the other.
        first_rows: (shards + 1,) int64; shard s has the rows ``first_rows[s]`` to ``first_rows[s + 1] - 1``.
        audio_slots, frame_slots, video_slots: Slots by what they hold, frames in order.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        columns, meta = _map_columns(self.path)
        self.fingerprint: str = meta["fingerprint"]
        self.shards: list[str] = meta["shards"]
        self.num_classes: int = meta["num_classes"]
        self.plain: bool = meta["plain"]
        self.slots: list[str] = meta["slots"]
        self.durations = columns["durations"]
        self.key_checksums = columns["key_checksums"]
        self.label_offsets = columns["label_offsets"]
        self.label_ids = columns["label_ids"]
        self.first_rows = columns["first_rows"]
        self._starts = columns["starts"]
        self._blocks = columns["blocks"]
        self._offsets = columns.get("offsets")
        self._id_offsets = columns["id_offsets"]
        self._id_bytes = columns["id_bytes"]
        self._missing = int(np.iinfo(self._blocks.dtype).max)
        self.audio_slots = self._slots_of(AUDIO_SUFFIXES)
        self.frame_slots = self._slots_of(IMAGE_SUFFIXES)
        self.video_slots = self._slots_of(VIDEO_SUFFIXES)

    @classmethod
    def open(cls, folder: Path | str, fingerprint: str | None = None) -> ClipTable:
        """Maps the table of a folder.

        Args:
            folder: The set's folder, or the table itself.
            fingerprint: That of the folder's index; where given, the table must have been made for it.

        Raises:
            ShardError: There is no table, it can't be read, or it belongs to another index.
        """
        path = Path(folder)
        path = path / TABLE_NAME if path.is_dir() else path
        if not path.is_file():
            raise ShardError(f"{path} is not there; make it with: python -m datasets.index {path.parent}")
        table = cls(path)
        if fingerprint is not None and table.fingerprint != fingerprint:
            raise ShardError(
                f"{path} belongs to another state of index.json; make it anew with: "
                f"python -m datasets.index {path.parent}"
            )
        return table

    def __len__(self) -> int:
        return len(self._starts)

    def __reduce__(self) -> tuple[type[ClipTable], tuple[Path]]:
        return ClipTable, (self.path,)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Number of clips of each shard."""
        return tuple(np.diff(self.first_rows).tolist())

    def id(self, row: int) -> str:
        """The clip's id."""
        first, last = self._id_offsets[row : row + 2].tolist()
        return self._id_bytes[first:last].tobytes().decode()

    def shard_of(self, row: int) -> int:
        """Place of the clip's shard in ``shards``."""
        return int(np.searchsorted(self.first_rows, row, side="right")) - 1

    def labels(self, row: int) -> tuple[int, ...]:
        """The clip's class ids, ascending."""
        first, last = self.label_offsets[row : row + 2].tolist()
        return tuple(self.label_ids[first:last].tolist())

    def members(self, row: int) -> dict[int, Extent]:
        """Where the clip's members lie, by slot; slots it lacks are absent."""
        blocks = self._blocks[row].tolist()
        start = int(self._starts[row])
        if self._offsets is not None:
            offsets = self._offsets[row].tolist()
            return {
                slot: Extent((start + offset) * BLOCK, count)
                for slot, (offset, count) in enumerate(zip(offsets, blocks, strict=True))
                if count != self._missing
            }
        extents = {}
        for slot, count in enumerate(blocks):
            if count != self._missing:
                extents[slot] = Extent(start * BLOCK, count)
                start += 1 + count
        return extents

    @property
    def num_with_audio(self) -> int:
        """Clips that have sound, or a video that may have it."""
        return self._count(self.audio_slots + self.video_slots)

    @property
    def num_with_frames(self) -> int:
        """Clips that have pictures or a video."""
        return self._count(self.frame_slots + self.video_slots)

    def _count(self, slots: list[int]) -> int:
        return int((self._blocks[:, slots] != self._missing).any(axis=1).sum()) if slots else 0

    def _slots_of(self, endings: Sequence[str]) -> list[int]:
        slots = [i for i, suffix in enumerate(self.slots) if suffix.rpartition(".")[2] in endings]
        return sorted(slots, key=lambda slot: _natural(self.slots[slot]))


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """Sorting key under which ``2.jpg`` comes before ``10.jpg``."""
    parts = re.findall(r"\d+|\D+", text)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


class TableBuilder:
    """Collects the clips shard by shard, and writes the table."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._parts: list[_Part] = []
        self._longest: list[str] = []
        self._suffixes: dict[str, None] = {}
        self._plain = True

    def add(self, shard: str, rows: Sequence[TableRow]) -> None:
        """Appends a shard with its clips, in their order.

        Raises:
            ShardError: The set's samples have too many different members to be a table.
        """
        longest = max((row.members for row in rows), key=len)
        if len(longest) > len(self._longest):
            self._longest = [suffix for suffix, _, _ in longest]
        self._suffixes.update((suffix, None) for row in rows for suffix, _, _ in row.members)
        if len(self._suffixes) > _MAX_SLOTS:
            raise ShardError(
                f"{shard}: the samples have more than {_MAX_SLOTS} different member names "
                f"(such as {list(self._suffixes)[-1]!r}); a key ends at the first dot of a name"
            )
        self._plain &= all(row.plain for row in rows)
        self._shards.append(shard)
        self._parts.append(_Part.of(rows))

    def save(
        self, folder: Path, fingerprint: str, num_classes: int, class_of: Sequence[int] | None = None
    ) -> ClipTable:
        """Writes the table into ``folder``, whole or not at all, and opens it.

        Args:
            folder: The set's folder.
            fingerprint: That of its index.
            num_classes: Size of its vocabulary.
            class_of: Class id of each number that ``TableRow.labels`` had; None where they are class ids
                already.
        """
        slots = list(dict.fromkeys([*self._longest, *self._suffixes]))
        columns = self._columns(slots)
        if class_of is not None:
            columns["label_ids"] = _sorted_labels(columns, class_of)
        columns["label_ids"] = columns["label_ids"].astype(np.uint16 if num_classes <= 1 << 16 else np.uint32)
        meta = {
            "fingerprint": fingerprint,
            "shards": self._shards,
            "num_classes": num_classes,
            "plain": self._plain,
            "slots": slots,
        }
        write_table(folder / TABLE_NAME, columns, meta)
        return ClipTable.open(folder, fingerprint)

    def _columns(self, slots: list[str]) -> dict[str, NDArray[Any]]:
        laid = [part.lay_out(slots) for part in self._parts]
        blocks = np.concatenate([blocks for blocks, _ in laid])
        offsets = np.concatenate([offsets for _, offsets in laid])
        starts = offsets.min(axis=1)
        offsets -= starts[:, None]
        present = blocks >= 0
        narrow = blocks.max() < np.iinfo(np.uint16).max
        kind = np.dtype(np.uint16 if narrow else np.uint32)
        columns: dict[str, NDArray[Any]] = {
            "starts": starts.astype(np.uint32),
            "blocks": np.where(present, blocks, np.iinfo(kind).max).astype(kind),
            "key_checksums": np.concatenate([part.key_checksums for part in self._parts]),
            "durations": np.concatenate([part.durations for part in self._parts]),
            "id_offsets": _offsets([part.id_lengths for part in self._parts]),
            "id_bytes": np.frombuffer(b"".join(part.ids for part in self._parts), np.uint8),
            "label_offsets": _offsets([part.label_counts for part in self._parts]),
            "label_ids": np.concatenate([part.labels for part in self._parts]),
            "first_rows": np.cumsum([0, *(len(part.durations) for part in self._parts)]),
        }
        taken = np.where(present, blocks + 1, 0)
        if not np.array_equal(
            np.where(present, np.cumsum(taken, axis=1) - taken, 0), np.where(present, offsets, 0)
        ):
            columns["offsets"] = np.where(present, offsets, 0).astype(np.uint32)
        return columns


class _Part(NamedTuple):
    """A shard's clips as arrays, members not yet sorted into the set's slots."""

    suffixes: list[str]
    member_counts: NDArray[Any]
    member_suffix: NDArray[Any]
    member_block: NDArray[Any]
    member_size: NDArray[Any]
    key_checksums: NDArray[Any]
    durations: NDArray[Any]
    id_lengths: NDArray[Any]
    ids: bytes
    label_counts: NDArray[Any]
    labels: NDArray[Any]

    @staticmethod
    def of(rows: Sequence[TableRow]) -> _Part:
        suffixes: dict[str, int] = {}
        members = [
            (suffixes.setdefault(suffix, len(suffixes)), offset // BLOCK - 1, -(-size // BLOCK))
            for row in rows
            for suffix, offset, size in row.members
        ]
        flat = np.array(members, np.uint32).reshape(-1, 3)
        ids = [row.id.encode() for row in rows]
        return _Part(
            suffixes=list(suffixes),
            member_counts=np.array([len(row.members) for row in rows]),
            member_suffix=flat[:, 0],
            member_block=flat[:, 1],
            member_size=flat[:, 2],
            key_checksums=np.array([key_checksum(row.key) for row in rows], np.uint32),
            durations=np.array([row.duration for row in rows], np.float32),
            id_lengths=np.array([len(name) for name in ids]),
            ids=b"".join(ids),
            label_counts=np.array([len(row.labels) for row in rows]),
            labels=np.array([label for row in rows for label in row.labels], np.uint32),
        )

    def lay_out(self, slots: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Block counts (-1: no such member) and header blocks (beyond any other where there is none)."""
        slot_of = np.array([slots.index(suffix) for suffix in self.suffixes])
        rows = np.repeat(np.arange(len(self.member_counts)), self.member_counts)
        columns = slot_of[self.member_suffix]
        blocks = np.full((len(self.member_counts), len(slots)), -1, np.int64)
        offsets = np.full(blocks.shape, np.iinfo(np.int64).max, np.int64)
        blocks[rows, columns] = self.member_size
        offsets[rows, columns] = self.member_block
        return blocks, offsets


def key_checksum(key: str) -> int:
    """CRC-32 by which the table knows a sample's key."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


def _offsets(counts: list[NDArray[Any]]) -> NDArray[Any]:
    offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
    return offsets.astype(np.uint32) if offsets[-1] < 1 << 32 else offsets


def _sorted_labels(columns: dict[str, NDArray[Any]], class_of: Sequence[int]) -> NDArray[Any]:
    labels = np.asarray(class_of, np.uint32)[columns["label_ids"]]
    rows = np.repeat(np.arange(len(columns["starts"])), np.diff(columns["label_offsets"].astype(np.int64)))
    return labels[np.lexsort((labels, rows))]


def write_table(path: Path, columns: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """Writes named arrays: magic, header length, JSON header with ``meta``, columns at aligned places."""
    places, position = {}, 0
    for name, column in columns.items():
        places[name] = {"dtype": column.dtype.str, "shape": column.shape, "offset": position}
        position += -(-column.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = json.dumps({"columns": places, "bytes": position, **meta}).encode()
    head = _MAGIC + len(header).to_bytes(8, "little") + header
    parts = [head, bytes(-len(head) % _ALIGNMENT)]
    for column in columns.values():
        parts += [column.tobytes(), bytes(-column.nbytes % _ALIGNMENT)]
    write_atomically(path, b"".join(parts))


def _map_columns(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC) + 8)
        if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + 8:
            raise ShardError(
                f"{path} is no table of clips; make it anew with: python -m datasets.index {path.parent}"
            )
        length = int.from_bytes(head[len(_MAGIC) :], "little")
        header = file.read(length)
    data = -(-(len(head) + length) // _ALIGNMENT) * _ALIGNMENT
    size = path.stat().st_size
    if size < data or size != data + (meta := json.loads(header))["bytes"]:
        raise ShardError(f"{path} is cut off; make it anew with: python -m datasets.index {path.parent}")
    mapped = np.memmap(path, np.uint8, mode="r")
    columns = {}
    for name, place in meta.pop("columns").items():
        kind, shape = np.dtype(place["dtype"]), tuple(place["shape"])
        first = data + place["offset"]
        nbytes = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        # A plain array over the map: indexing np.memmap itself costs several microseconds more.
        columns[name] = np.asarray(mapped)[first : first + nbytes].view(kind).reshape(shape)
    return columns, meta
