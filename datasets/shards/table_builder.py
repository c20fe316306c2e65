"""Makes the table of a set, shard by shard, in memory that does not grow with the number of clips.

What is known of a clip when its shard is read goes to temporary files at once, a file for each kind of number.
How wide a column must be, and which slots there are, is known when all shards were: then the columns are read
back piece by piece, brought to their form and written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets.shards.table import TABLE_NAME, ClipTable, Column, key_checksum, write_table
from datasets.shards.tar import BLOCK, ShardError

_MAX_SLOTS = 512
_CHUNK = 1 << 14  # clips worked on at a time
_SPOOLED = {
    "member_counts": np.uint32,
    "member_suffix": np.uint16,
    "member_block": np.uint32,
    "member_blocks": np.uint32,
    "key_checksums": np.uint32,
    "durations": np.float32,
    "id_lengths": np.uint32,
    "id_bytes": np.uint8,
    "label_counts": np.uint32,
    "labels": np.uint32,
    "time_counts": np.uint32,
    "frame_times": np.float32,
}


class TableRow(NamedTuple):
    """One sample as the builder takes it.

    Attributes:
        key: Its key in the shard.
        id: The clip's id.
        labels: Class ids, ascending.
        duration: Seconds, 0 where unknown.
        members: (suffix, first byte of its data, size in bytes) in the order in which they lie in the shard.
        plain: The members' names stand in the headers right before their data.
        frame_times: Seconds at which its pictures are shown; empty where not known.
    """

    key: str
    id: str
    labels: list[int]
    duration: float
    members: list[tuple[str, int, int]]
    plain: bool = True
    frame_times: Sequence[float] = ()


class TableBuilder:
    """Collects the clips shard by shard, and writes the table; a context manager.

    Args:
        folder: The set's folder, which also takes the temporary files (they have no names there).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[str] = []
        self._shard_sizes: list[int] = []
        self._longest: list[str] = []
        self._suffixes: dict[str, int] = {}  # by order of appearance
        self._most_blocks = 0
        self._plain = True
        self._files = ExitStack()
        self._spools = {
            name: _Spool(self._files.enter_context(TemporaryFile(dir=folder)), np.dtype(kind))  # noqa: SIM115
            for name, kind in _SPOOLED.items()
        }

    def __enter__(self) -> TableBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, shard: str, rows: Sequence[TableRow]) -> None:
        """Appends a shard with its clips, in their order.

        Raises:
            ShardError: The set's samples have too many different members to be a table.
        """
        longest = max((row.members for row in rows), key=len)
        if len(longest) > len(self._longest):
            self._longest = [suffix for suffix, _, _ in longest]
        members = [member for row in rows for member in row.members]
        for suffix, _, _ in members:
            self._suffixes.setdefault(suffix, len(self._suffixes))
        if len(self._suffixes) > _MAX_SLOTS:
            raise ShardError(
                f"{shard}: the samples have more than {_MAX_SLOTS} different member names "
                f"(such as {list(self._suffixes)[-1]!r}); a key ends at the first dot of a name"
            )
        self._plain &= all(row.plain for row in rows)
        self._shards.append(shard)
        self._shard_sizes.append(len(rows))
        blocks = [-(-size // BLOCK) for _, _, size in members]
        self._most_blocks = max([self._most_blocks, *blocks])
        ids = [row.id.encode() for row in rows]
        new: dict[str, ArrayLike] = {
            "member_counts": [len(row.members) for row in rows],
            "member_suffix": [self._suffixes[suffix] for suffix, _, _ in members],
            "member_block": [offset // BLOCK - 1 for _, offset, _ in members],
            "member_blocks": blocks,
            "key_checksums": [key_checksum(row.key) for row in rows],
            "durations": [row.duration for row in rows],
            "id_lengths": [len(name) for name in ids],
            "id_bytes": np.frombuffer(b"".join(ids), np.uint8),
            "label_counts": [len(row.labels) for row in rows],
            "labels": [label for row in rows for label in row.labels],
            "time_counts": [len(row.frame_times) for row in rows],
            "frame_times": [time for row in rows for time in row.frame_times],
        }
        for name, values in new.items():
            self._spools[name].append(values)

    def save(self, fingerprint: str, num_classes: int, class_of: Sequence[int] | None = None) -> ClipTable:
        """Writes the table into the folder, whole or not at all, and opens it.

        Args:
            fingerprint: That of the set's index.
            num_classes: Size of its vocabulary.
            class_of: Class id of each number that ``TableRow.labels`` had; None where they are class ids
                already.
        """
        slots = list(dict.fromkeys([*self._longest, *self._suffixes]))
        meta = {
            "fingerprint": fingerprint,
            "shards": self._shards,
            "num_classes": num_classes,
            "plain": self._plain,
            "slots": slots,
        }
        write_table(self._folder / TABLE_NAME, self._columns(slots, num_classes, class_of), meta)
        return ClipTable.open(self._folder, fingerprint)

    def _columns(
        self, slots: list[str], num_classes: int, class_of: Sequence[int] | None
    ) -> dict[str, Column]:
        spools, rows = self._spools, self._spools["durations"].count
        narrow = np.dtype(np.uint16 if self._most_blocks < np.iinfo(np.uint16).max else np.uint32)
        missing = np.iinfo(narrow).max
        label_kind = np.dtype(np.uint16 if num_classes <= 1 << 16 else np.uint32)
        chunks = (np.where(part.present, part.blocks, missing) for part in self._layouts(slots))
        columns = {
            "starts": Column(np.dtype(np.uint32), (rows,), (part.starts for part in self._layouts(slots))),
            "blocks": Column(narrow, (rows, len(slots)), chunks),
            "key_checksums": spools["key_checksums"].column(),
            "durations": spools["durations"].column(),
            "id_offsets": _offsets(spools["id_lengths"], spools["id_bytes"].count),
            "id_bytes": spools["id_bytes"].column(),
            "label_offsets": _offsets(spools["label_counts"], spools["labels"].count),
            "label_ids": Column(label_kind, (spools["labels"].count,), self._labels(class_of)),
            "first_rows": Column.of(np.cumsum([0, *self._shard_sizes])),
        }
        if spools["frame_times"].count:  # a set that knows none has the table it always had
            columns["time_offsets"] = _offsets(spools["time_counts"], spools["frame_times"].count)
            columns["frame_times"] = spools["frame_times"].column()
        if not all(part.gapless for part in self._layouts(slots)):
            offsets = (part.offsets for part in self._layouts(slots))
            columns["offsets"] = Column(np.dtype(np.uint32), (rows, len(slots)), offsets)
        return columns

    def _layouts(self, slots: list[str]) -> Iterator[_Layout]:
        """The clips' members in the set's slots, some clips at a time."""
        slot_of = np.array([slots.index(suffix) for suffix in self._suffixes])
        first = 0
        for counts in self._spools["member_counts"].chunks():
            total = int(counts.sum())
            suffix, block, blocks = (
                self._spools[name].read(first, total)
                for name in ("member_suffix", "member_block", "member_blocks")
            )
            first += total
            places = np.repeat(np.arange(len(counts)), counts), slot_of[suffix]
            yield _Layout.of((len(counts), len(slots)), places, block, blocks)

    def _labels(self, class_of: Sequence[int] | None) -> Iterator[NDArray[Any]]:
        first = 0
        for counts in self._spools["label_counts"].chunks():
            total = int(counts.sum())
            labels = self._spools["labels"].read(first, total)
            first += total
            if class_of is not None:
                labels = np.asarray(class_of, np.uint32)[labels]
                labels = labels[np.lexsort((labels, np.repeat(np.arange(len(counts)), counts)))]
            yield labels


class _Layout(NamedTuple):
    """Where the members of some clips lie, by slot.

    Attributes:
        starts: (rows,) block at which the clip's first member begins.
        present: (rows, slots) whether the clip has the member.
        blocks: (rows, slots) blocks of its data.
        offsets: (rows, slots) its header's block after the clip's start, 0 where there is none.
    """

    starts: NDArray[np.int64]
    present: NDArray[np.bool_]
    blocks: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @staticmethod
    def of(
        shape: tuple[int, int], places: tuple[NDArray[Any], ...], block: NDArray[Any], blocks: NDArray[Any]
    ) -> _Layout:
        present, taken = np.zeros(shape, bool), np.zeros(shape, np.int64)
        offsets = np.full(shape, np.iinfo(np.int64).max, np.int64)
        present[places], taken[places], offsets[places] = True, blocks, block
        starts = offsets.min(axis=1)
        return _Layout(starts, present, taken, np.where(present, offsets - starts[:, None], 0))

    @property
    def gapless(self) -> bool:
        """Whether the members lie one after the other in the order of the slots."""
        taken = self.blocks + self.present
        return np.array_equal(np.where(self.present, np.cumsum(taken, axis=1) - taken, 0), self.offsets)


class _Spool:
    """Numbers of one kind in a temporary file."""

    def __init__(self, file: IO[bytes], kind: np.dtype[Any]) -> None:
        self.count = 0
        self._file, self._kind = file, kind

    def append(self, values: ArrayLike) -> None:
        array = np.asarray(values, self._kind)
        self._file.seek(0, 2)
        self._file.write(array.tobytes())
        self.count += array.size

    def read(self, first: int, count: int) -> NDArray[Any]:
        self._file.seek(first * self._kind.itemsize)
        return np.frombuffer(self._file.read(count * self._kind.itemsize), self._kind)

    def chunks(self) -> Iterator[NDArray[Any]]:
        for first in range(0, self.count, _CHUNK):
            yield self.read(first, min(_CHUNK, self.count - first))

    def column(self) -> Column:
        return Column(self._kind, (self.count,), self.chunks())


def _offsets(lengths: _Spool, total: int) -> Column:
    """Where each of things that lie one after the other begins, and where the last one ends."""

    def chunks() -> Iterator[NDArray[Any]]:
        end = np.zeros(1, np.int64)
        yield end
        for chunk in lengths.chunks():
            ends = end + np.cumsum(chunk, dtype=np.int64)
            yield ends
            end = ends[-1:]

    return Column(np.dtype(np.uint32 if total < 1 << 32 else np.int64), (lengths.count + 1,), chunks())
