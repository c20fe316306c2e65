"""Some clips of a set, read whole to be looked at: all their members, decoded when asked for."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from torch import Tensor

from datasets.decode import DecodeError, decode_audio, decode_frame, decode_video
from datasets.guard import DecoderDiedError, Guard
from datasets.prepare.fbank_stats import spread_rows
from datasets.shards.table import ClipTable, Extent
from datasets.shards.tar import BLOCK, METADATA_SUFFIX
from datasets.untrusted import finite_number


class StoredClip(NamedTuple):
    """A clip's members as they lie in its shard.

    Attributes:
        sound: The sound file's bytes; empty where it has none.
        frames: The pictures' bytes in order.
        frame_times: When each picture is shown, in seconds after the clip's start; empty where not known.
        video: The bytes of a video file; empty where it has none.
    """

    sound: bytes
    frames: list[bytes]
    frame_times: list[float]
    video: bytes

    def waveform(self) -> Tensor | None:
        """(S,) int16 at 16 kHz; None where there is no sound."""
        if self.sound:
            return decode_audio(self.sound)
        return decode_video(self.video, 1, [], 1)[0] if self.video else None

    def pictures(self, count: int, side: int) -> tuple[list[Tensor], list[float]]:
        """Some frames and when they are shown.

        Args:
            count: Up to how many frames, evenly spread.
            side: Of the square they are cut to, in pixels.

        Returns:
            (3, side, side) uint8 each, and their times in seconds (none where not known).
        """
        if self.frames or not self.video:
            chosen = spread_rows(len(self.frames), count)
            times = [self.frame_times[i] for i in chosen] if self.frame_times else []
            return [decode_frame(bytearray(self.frames[i]), side) for i in chosen], times
        frames = decode_video(self.video, count, range(count), side)[1]
        return ([] if frames is None else list(frames)), []


class SeenClip(NamedTuple):
    """What is decoded of a clip.

    Attributes:
        waveform: (S,) int16 at 16 kHz; None where there is no sound.
        pictures: (3, side, side) uint8 each.
        times: When each is shown, in seconds; empty where not known.
    """

    waveform: Tensor | None
    pictures: list[Tensor]
    times: list[float]


class ClipViewer:
    """Decodes single clips of a set, in a process apart.

    Args:
        folder: The set's folder.
        table: Its table.
    """

    def __init__(self, folder: Path, table: ClipTable) -> None:
        self._folder, self._table = folder, table
        self._decode = Guard(_decode)

    def see(self, row: int, count: int = 0, side: int = 1) -> SeenClip:
        """A clip's sound and up to ``count`` frames, evenly spread, as squares of ``side`` pixels.

        Raises:
            DecodeError: It is damaged, or its decoder died.
        """
        try:
            return self._decode(read_clip(self._folder, self._table, row), count, side)
        except (DecoderDiedError, OSError) as error:
            raise DecodeError(str(error)) from error

    def close(self) -> None:
        """Ends the process."""
        self._decode.close()


def _decode(clip: StoredClip, count: int, side: int) -> SeenClip:
    return SeenClip(clip.waveform(), *(clip.pictures(count, side) if count else ([], [])))


def read_clip(folder: Path, table: ClipTable, row: int) -> StoredClip:
    """The stored bytes of a clip.

    Raises:
        DecodeError: What lies at its place is no clip.
        OSError: Its shard can't be read.
    """
    metadata_slots = [slot for slot, suffix in enumerate(table.slots) if suffix == METADATA_SUFFIX]
    members = table.members(row)
    shard = folder / table.shards[table.shard_of(row)]
    if not shard.is_file():  # opening a FIFO would wait for its writer
        raise DecodeError(f"its shard {shard} is not there, or no regular file")
    with open(shard, "rb") as file:

        def read(slots: Sequence[int]) -> list[bytes]:
            return [_read(file, members[slot]) for slot in slots if slot in members]

        sound, video, metadata = (
            b"".join(read(slots)[:1]) for slots in (table.audio_slots, table.video_slots, metadata_slots)
        )
        frames = read(table.frame_slots)
    try:
        times = json.loads(metadata or b"{}").get("frame_times", [])
    except (ValueError, AttributeError, RecursionError) as error:
        raise DecodeError(f"its metadata can't be read: {error}") from error
    known = isinstance(times, list) and len(times) == len(frames)
    known = known and all(finite_number(time, -1e9, 1e9) for time in times)
    return StoredClip(sound, frames, times if known else [], video)


def _read(file: BinaryIO, extent: Extent) -> bytes:
    length = (1 + extent.blocks) * BLOCK
    if extent.offset + length > os.fstat(file.fileno()).st_size:  # before room is made for it
        raise DecodeError("its shard ends before it does")
    file.seek(extent.offset)
    data = file.read(length)
    try:
        size = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape").size
    except tarfile.HeaderError as error:
        raise DecodeError(f"its shard is damaged at byte {extent.offset}: {error}") from error
    return data[BLOCK : BLOCK + size]
