"""The table of a set: for each clip where its bytes lie, its id, labels and duration; memory-mapped.

A file of columns (``index.table``) beside ``index.json``, about 100 bytes a clip of ten frames with their times and
an AudioSet id, so that two million clips open in milliseconds and all workers of a machine share the same pages.

Decisions:
    * Tar data lie in blocks of 512 bytes, so a member takes a block count (two bytes, four where a member is
      larger than 32 MB). Its exact size stands in the header before its data, which is read along with it
      and compared.
    * A sample's members lie one after the other, so one start a sample is enough. Where shards made
      elsewhere have other things in between, a column of offsets is added.
    * Columns are slots, one for each member suffix of the set (``json, flac, 00.jpg, ...``).
    * Times of frames are columns that only a set which knows them has. A table made before there were such
      columns opens as one of a set that does not.
    * The table carries the fingerprint of the index that it was made for; a stale one is refused.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atomic import write_atomically
from datasets.shards.manifest import ShardIndex
from datasets.shards.names import is_file_name
from datasets.shards.tar import (
    AUDIO_SUFFIXES,
    BLOCK,
    IMAGE_SUFFIXES,
    TEXT_SUFFIX,
    VIDEO_SUFFIXES,
    ShardError,
)
from datasets.untrusted import is_text, whole_number

TABLE_NAME = "index.table"

_MAGIC = b"earsight-table-1\n"
_ALIGNMENT = 64
_LARGEST_HEADER = 32 << 20


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
        audio_slots, frame_slots, video_slots, text_slots: Slots by what they hold, frames in order.
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
        self._time_offsets = columns.get("time_offsets")
        self._frame_times = columns.get("frame_times")
        self._missing = int(np.iinfo(self._blocks.dtype).max)
        self.audio_slots = self._slots_of(AUDIO_SUFFIXES)
        self.frame_slots = self._slots_of(IMAGE_SUFFIXES)
        self.video_slots = self._slots_of(VIDEO_SUFFIXES)
        self.text_slots = [slot for slot, suffix in enumerate(self.slots) if suffix == TEXT_SUFFIX]

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
                f"{path} belongs to another state of index.json; rebuild it with: "
                f"python -m datasets.index {path.parent}"
            )
        return table

    @classmethod
    def of(cls, index: ShardIndex, folder: Path | str) -> ClipTable:
        """Maps the table of an index: one may claim to be that, and speak of other shards or more classes.

        Args:
            index: The index.
            folder: As of `open`.

        Raises:
            ShardError: As of `open`; or its shards or classes are not those of the index.
        """
        table = cls.open(folder, index.fingerprint)
        said = list(zip(table.shards, table.shard_sizes, strict=True))
        known = [(shard.name, shard.samples) for shard in index.shards]
        if said != known or table.num_classes != len(index.labels):
            raise ShardError(
                f"{table.path} has other shards, classes or numbers of clips than index.json; rebuild it with: "
                f"python -m datasets.index {table.path.parent}"
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
        return self._id_bytes[first:last].tobytes().decode(errors="replace")

    def ids(self) -> Iterator[str]:
        """The ids of all clips, in order."""
        text, offsets = self._id_bytes.tobytes(), self._id_offsets.tolist()
        return (text[first:last].decode(errors="replace") for first, last in pairwise(offsets))

    def shard_of(self, row: int) -> int:
        """Place of the clip's shard in ``shards``."""
        return int(np.searchsorted(self.first_rows, row, side="right")) - 1

    def labels(self, row: int) -> tuple[int, ...]:
        """The clip's class ids, ascending."""
        first, last = self.label_offsets[row : row + 2].tolist()
        return tuple(self.label_ids[first:last].tolist())

    def frame_times(self, row: int) -> NDArray[np.float32] | None:
        """(frames,) seconds after the clip's start at which its pictures are shown; None where not known."""
        if self._time_offsets is None or self._frame_times is None:
            return None
        first, last = self._time_offsets[row : row + 2].tolist()
        return self._frame_times[first:last] if last > first else None

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

    @property
    def num_with_text(self) -> int:
        """Clips that have text."""
        return self._count(self.text_slots)

    @property
    def most_frames(self) -> int:
        """Pictures of the clip that has the most of them."""
        if not self.frame_slots:
            return 0
        present = self._blocks[:, self.frame_slots] != self._missing
        return int(present.sum(axis=1).max(initial=0))

    def _count(self, slots: list[int]) -> int:
        return int((self._blocks[:, slots] != self._missing).any(axis=1).sum()) if slots else 0

    def _slots_of(self, endings: Sequence[str]) -> list[int]:
        slots = [i for i, suffix in enumerate(self.slots) if suffix.rpartition(".")[2] in endings]
        return sorted(slots, key=lambda slot: _natural(self.slots[slot]))


def _natural(text: str) -> list[tuple[bool, int, str]]:
    """Sorting key under which ``2.jpg`` comes before ``10.jpg``."""
    parts = re.findall(r"\d+|\D+", text)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def key_checksum(key: str) -> int:
    """CRC-32 by which the table knows a sample's key."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


class Column(NamedTuple):
    """A column of the table on its way into the file.

    Attributes:
        kind: What its numbers are.
        shape: Its shape.
        chunks: Its values in order, in pieces of any length.
    """

    kind: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Iterable[NDArray[Any]]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Column:
        """A column that is in memory."""
        return cls(values.dtype, values.shape, [values])

    @property
    def nbytes(self) -> int:
        """Its size in the file, without what fills it up to the next column's place."""
        return self.kind.itemsize * math.prod(self.shape)


def write_table(path: Path, columns: Mapping[str, Column], meta: Mapping[str, Any]) -> None:
    """Writes columns: magic, header length, JSON header with ``meta``, columns at aligned places."""
    places, position = {}, 0
    for name, column in columns.items():
        places[name] = {"dtype": column.kind.str, "shape": column.shape, "offset": position}
        position += _padded(column.nbytes)
    header = json.dumps({"columns": places, "bytes": position, **meta}).encode()
    head = _MAGIC + len(header).to_bytes(8, "little") + header

    def pieces() -> Iterator[bytes]:
        yield head.ljust(_padded(len(head)), b"\0")
        for name, column in columns.items():
            written = 0
            for chunk in column.chunks:
                yield chunk.astype(column.kind, copy=False).tobytes()
                written += chunk.size * column.kind.itemsize
            assert written == column.nbytes, f"column {name}: {written} bytes instead of {column.nbytes}"
            yield bytes(_padded(written) - written)

    write_atomically(path, pieces())


def _check(columns: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Raises a ``ValueError`` or ``KeyError`` unless columns and header fit each other."""
    shards, slots, classes = meta["shards"], meta["slots"], meta["num_classes"]
    for names, legal in ((shards, is_file_name), (slots, partial(is_text, longest=1000))):
        if not isinstance(names, list) or not all(map(legal, names)):
            raise ValueError("shards must be names of files in the set's folder, slots names of members")
    if (
        not is_text(meta["fingerprint"], 100)
        or not whole_number(classes, 0, 1 << 31)
        or meta["plain"] not in (True, False)
    ):
        raise ValueError("fingerprint, num_classes or plain is none")
    rows = len(columns["starts"])
    shapes = {
        "starts": (rows,),
        "durations": (rows,),
        "key_checksums": (rows,),
        "first_rows": (len(shards) + 1,),
    }
    shapes |= {"label_offsets": (rows + 1,), "id_offsets": (rows + 1,), "blocks": (rows, len(slots))}
    for name, shape in shapes.items():
        if columns[name].shape != shape:
            raise ValueError(f"column {name} has shape {columns[name].shape}, not {shape}")
    if "offsets" in columns and columns["offsets"].shape != (rows, len(slots)):
        raise ValueError("column offsets has another shape than blocks")
    ends = {
        "first_rows": rows,
        "label_offsets": len(columns["label_ids"]),
        "id_offsets": len(columns["id_bytes"]),
    }
    if "time_offsets" in columns:
        if columns["time_offsets"].shape != (rows + 1,) or columns["frame_times"].dtype.kind != "f":
            raise ValueError("columns time_offsets and frame_times are no times of frames")
        ends["time_offsets"] = len(columns["frame_times"])
    for name, end in ends.items():
        places = columns[name]
        if (
            places.dtype.kind not in "ui"
            or places[0] != 0
            or places[-1] != end
            or (places[1:] < places[:-1]).any()
        ):
            raise ValueError(f"column {name} does not rise from 0 to {end}")
    if columns["durations"].dtype.kind != "f" or not np.isfinite(columns["durations"]).all():
        raise ValueError("a duration is no number of seconds")
    labels = columns["label_ids"]
    if labels.dtype.kind not in "ui" or (
        len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes
    ):
        raise ValueError(f"a label is not below num_classes, {classes}")
    if (
        any(columns[name].dtype.kind != "u" for name in ("starts", "blocks", "offsets") if name in columns)
        or columns["id_bytes"].dtype != np.uint8
    ):
        raise ValueError("starts, blocks and id_bytes must be whole numbers")


def _is_shape(shape: tuple[Any, ...], size: int) -> bool:
    return (
        len(shape) in (1, 2)
        and all(whole_number(side, 0, size) for side in shape)
        and math.prod(shape) <= size
    )


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _map_columns(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The columns of a table and what its header says; whatever is wrong with them is a ``ShardError``."""
    try:
        return _mapped(path)
    except ShardError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RecursionError,
        OSError,
    ) as error:
        raise ShardError(
            f"{path} is no table of clips ({error!r:.200}); rebuild it with: python -m datasets.index {path.parent}"
        ) from error


def _mapped(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC) + 8)
        if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + 8:
            raise ShardError(
                f"{path} is no table of clips; rebuild it with: python -m datasets.index {path.parent}"
            )
        length = int.from_bytes(head[len(_MAGIC) :], "little")
        header = file.read(length) if length <= _LARGEST_HEADER else b""
    data = _padded(len(head) + length)
    size = path.stat().st_size
    if size < data or size != data + (meta := json.loads(header))["bytes"]:
        raise ShardError(f"{path} is cut off; rebuild it with: python -m datasets.index {path.parent}")
    mapped = np.memmap(path, np.uint8, mode="r")
    columns = {}
    for name, place in meta.pop("columns").items():
        kind, shape = np.dtype(place["dtype"]), tuple(place["shape"])
        if kind.kind not in "uif" or not whole_number(place["offset"], 0, size) or not _is_shape(shape, size):
            raise ValueError(f"column {name!r:.80} is no column")
        first = data + place["offset"]
        nbytes = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        # A plain array over the map: indexing np.memmap itself costs several microseconds more.
        columns[name] = np.asarray(mapped)[first : first + nbytes].view(kind).reshape(shape)
    _check(columns, meta)
    return columns, meta
