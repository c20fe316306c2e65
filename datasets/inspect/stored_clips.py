"""Some clips of a set, read whole to be looked at: all their members, decoded when asked for."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from torch import Tensor

from datasets.decode import decode_audio, decode_frame, decode_video
from datasets.prepare.fbank_stats import spread_rows
from datasets.shards.table import ClipTable, Extent
from datasets.shards.tar import BLOCK, METADATA_SUFFIX


class StoredClip(NamedTuple):
    """A clip's members as they lie in its shard.

    Attributes:
        id: Its id.
        labels: Its class ids.
        sound: The sound file's bytes; empty where it has none.
        frames: The pictures' bytes in order.
        frame_times: When each picture is shown, in seconds after the clip's start; empty where not known.
        video: The bytes of a video file; empty where it has none.
    """

    id: str
    labels: tuple[int, ...]
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


def read_clips(folder: Path, table: ClipTable, rows: Sequence[int]) -> Iterator[StoredClip]:
    """The stored bytes of some clips, in the order asked for."""
    metadata_slots = [slot for slot, suffix in enumerate(table.slots) if suffix == METADATA_SUFFIX]
    for row in rows:
        members = table.members(row)
        with open(folder / table.shards[table.shard_of(row)], "rb") as file:

            def read(slots: Sequence[int], file=file, members=members) -> list[bytes]:
                return [_read(file, members[slot]) for slot in slots if slot in members]

            sound, video, metadata = (
                b"".join(read(slots)[:1]) for slots in (table.audio_slots, table.video_slots, metadata_slots)
            )
            frames = read(table.frame_slots)
            times = json.loads(metadata or b"{}").get("frame_times", [])
            known = times if isinstance(times, list) and len(times) == len(frames) else []
            yield StoredClip(table.id(row), table.labels(row), sound, frames, known, video)


def _read(file: BinaryIO, extent: Extent) -> bytes:
    file.seek(extent.offset)
    data = file.read((1 + extent.blocks) * BLOCK)
    size = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape").size
    return data[BLOCK : BLOCK + size]
