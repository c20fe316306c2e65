"""Reads clips by their tickets: a map-style dataset over the table of a set.

Only the members in use are read (the sound and one frame, not all ten) and decoded. A worker keeps the
shards it reads open.

Decisions:
    * Clips are decoded in a process apart (``datasets.guard``): one whose decoder dies is a bad clip.
    * The tar header before a member is read with it. It must be whole, and name this clip and this member,
      so a shard whose bytes changed under the same size does not pass for another.
    * In training the place of a bad clip is taken by another real one, which the plan names; in evaluation
      it stays empty. Either way the failure travels with the batch, and never a substitute tensor.
    * A shard that is missing or has another size is no bad clip but an error.
"""

from __future__ import annotations

import copy
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.decode import DecodeError, decode_audio, decode_frame, decode_text, decode_video
from datasets.guard import DecoderDiedError, Guard
from datasets.index import check_size
from datasets.loading.frames import (
    FrameChoice,
    TooFewFramesError,
    all_frames,
    frames_needed,
    frames_wanted,
    middle_frame,
    random_frame,
)
from datasets.loading.plan import substitute_row
from datasets.shards.names import public
from datasets.shards.scan import split_name
from datasets.shards.store import ShardStore
from datasets.shards.table import Extent, key_checksum
from datasets.shards.tar import BLOCK, ShardError

__all__ = ["ClipReader", "FrameChoice", "UnreadableClipsError", "all_frames", "middle_frame", "random_frame"]

MAX_ATTEMPTS = 8
VIDEO_FRAMES = 10
"""Frames that a clip stored as a video counts as, evenly spaced; more where more are asked for."""

_MAX_OPEN_SHARDS = 64


class UnreadableClipsError(RuntimeError):
    """A clip and all clips that should have taken its place can't be read."""


class _BadMemberError(ValueError):
    """What the shard holds at a member's place is not that member."""


class _Media(NamedTuple):
    """What was decoded of a clip."""

    waveform: Tensor | None = None
    frames: Tensor | None = None
    frame_index: tuple[int, ...] = ()
    num_stored: int = 0
    frame_times: Tensor | None = None
    text: str | None = None


class ClipReader(Dataset[Clip | ReadFailure]):
    """The clips of a set.

    Args:
        source: Folder of the set, or a store for a set at URLs.
        audio: Read the sound.
        choose_frames: Which frames to read, such as ``random_frame``; None for none. Must be picklable.
        image_size: Side of the square frames in pixels.
        text: Read the text of clips that have any.
        partial: Read clips that lack sound, frames or text, as long as they have any of what is asked for. In place
            of what they lack is sound of length 0, black frames of ``num_stored`` 0, no text. Without it a clip
            that lacks sound or frames is a bad clip.
        substitutes: A bad clip's place is taken by another; without it a ``ReadFailure`` stands there.
        keep_truncated: Take what is there of sounds and videos that are damaged or cut off.
        check_shards: See at once whether every shard is there with its size. Each is looked at in any case when it is
            first read from; of many processes one is to look at all of them.

    Raises:
        ShardError: Index, table or a shard is missing or not what it should be, or no clip has what is asked
            for.
        ValueError: Neither sound nor frames are asked for.
    """

    def __init__(
        self,
        source: Path | str | ShardStore,
        *,
        audio: bool = True,
        choose_frames: FrameChoice | None = random_frame,
        image_size: int = 224,
        text: bool = False,
        partial: bool = False,
        substitutes: bool = True,
        keep_truncated: bool = False,
        check_shards: bool = True,
    ) -> None:
        if not audio and choose_frames is None and not text:
            raise ValueError("a reader needs sound, frames or text to read")
        self.store = source if isinstance(source, ShardStore) else ShardStore(source)
        self.index, self.table = self.store.open_index()
        if check_shards:
            self.store.check(self.index.shards)
        self.audio = audio
        self.choose_frames = choose_frames
        self.image_size = image_size
        self.text = text
        self.partial = partial
        self.substitutes = substitutes
        self.keep_truncated = keep_truncated
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor, the latest in use last
        self._guard: Guard[[int, int], _Media] | None = None
        self._check_contents()

    def _check_contents(self) -> None:
        """Raises a ShardError if no clip has what is asked for, or, where some may be missing, any of it."""
        table, choose = self.table, self.choose_frames
        counts = {
            "sound": table.num_with_audio if self.audio else None,
            "frames": None if choose is None else table.num_with_frames,
            "text": table.num_with_text if self.text else None,
        }
        asked = {name: count for name, count in counts.items() if count is not None}
        missing = [name for name, count in asked.items() if not count]
        if missing and not (self.partial and len(missing) < len(asked)):
            raise ShardError(f"no clip of {public(self.store.location)} has {' or '.join(missing)}")
        if choose is not None and counts["frames"]:
            self._check_frames(frames_needed(choose))

    def _check_frames(self, needed: int) -> None:
        most = self.table.most_frames
        if most < needed and not self.table.video_slots:
            raise ShardError(
                f"{public(self.store.location)} has {most} frames a clip, fewer than the {needed} needed: prepare it "
                f"again from the videos with `python -m datasets.prepare ... --media.num_frames {needed}`, or ask for "
                f"at most {most} frames"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, ticket: Ticket) -> Clip | ReadFailure:
        return self.read(ticket)

    def __getitems__(self, tickets: Sequence[Ticket]) -> list[Clip | ReadFailure]:
        """Reads a batch of tickets (what a ``DataLoader`` with a batch sampler calls)."""
        return [self.read(ticket) for ticket in tickets]

    def __getstate__(self) -> dict[str, Any]:
        # Neither a descriptor nor a child means anything in another process.
        return {**self.__dict__, "_open": OrderedDict(), "_guard": None}

    def read(self, ticket: Ticket) -> Clip | ReadFailure:
        """Reads a ticket's clip, or the first of its substitutes that can be read.

        Raises:
            UnreadableClipsError: ``MAX_ATTEMPTS`` clips one after the other can't be read; names them.
            ShardError: A shard is missing, can't be fetched, or has another size than the index says.
        """
        failures: list[ReadFailure] = []
        row = ticket.row
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                self._descriptor(
                    self.table.shard_of(row)
                )  # fetched here: that may take longer than decoding may
                media = self._guarded()(row, ticket.seed)
            except (DecodeError, DecoderDiedError, TooFewFramesError, _BadMemberError, OSError) as error:
                shard = self.table.shards[self.table.shard_of(row)]
                failures.append(ReadFailure(self.table.id(row), shard, str(error)))
                if not self.substitutes:
                    return failures[0]
                row = substitute_row(ticket.seed, attempt, len(self.table))
                continue
            name, labels = self.table.id(row), self.table.labels(row)
            return Clip(
                name, row, ticket.seed, media.waveform, media.frames, labels, tuple(failures), *media[2:]
            )
        listed = "; ".join(f"{failure.id} in {failure.shard}: {failure.reason}" for failure in failures)
        raise UnreadableClipsError(f"{MAX_ATTEMPTS} clips one after the other can't be read: {listed}")

    def _guarded(self) -> Guard[[int, int], _Media]:
        """``_decode`` in a process apart, of a reader without this one's descriptors."""
        if self._guard is None:
            self._guard = Guard(copy.copy(self)._decode)
        return self._guard

    def _decode(self, row: int, seed: int) -> _Media:
        members = self.table.members(row)
        sounds = [slot for slot in self.table.audio_slots if slot in members]
        pictures = [slot for slot in self.table.frame_slots if slot in members]
        missing_audio = self.audio and not sounds
        missing_frames = self.choose_frames is not None and not pictures
        media = _Media()
        if missing_audio or missing_frames:
            media = self._decode_video(row, seed, members, missing_audio, missing_frames)
        texts = [slot for slot in self.table.text_slots if slot in members]
        if self.text and texts:
            found = decode_text(self._read_member(row, texts[0], members[texts[0]]))
            media = media._replace(text=found if found.strip() else None)  # nothing but blanks is no text
        if self.audio and sounds:
            media = media._replace(
                waveform=decode_audio(
                    self._read_member(row, sounds[0], members[sounds[0]]), self.keep_truncated
                )
            )
        if self.choose_frames is not None and pictures:
            chosen = tuple(self.choose_frames(len(pictures), seed))
            slots = [pictures[i] for i in chosen]
            frames = [
                decode_frame(self._read_member(row, slot, members[slot]), self.image_size) for slot in slots
            ]
            times = self.table.frame_times(row)
            media = media._replace(
                frames=torch.stack(frames),
                frame_index=chosen,
                num_stored=len(pictures),
                frame_times=None if times is None else torch.from_numpy(times[list(chosen)]),
            )
        return self._complete(media, seed) if self.partial else media

    def _complete(self, media: _Media, seed: int) -> _Media:
        """A partial clip with nothing in the place of what it lacks."""
        if media.waveform is None and media.frames is None and media.text is None:
            raise _BadMemberError("the sample has nothing of what is asked for")
        if self.audio and media.waveform is None:
            media = media._replace(waveform=torch.empty(0, dtype=torch.int16))
        if self.choose_frames is not None and media.frames is None:
            usual = self.table.most_frames or max(VIDEO_FRAMES, frames_wanted(self.choose_frames))
            count = len(self.choose_frames(usual, seed))
            black = torch.zeros(count, 3, self.image_size, self.image_size, dtype=torch.uint8)
            media = media._replace(frames=black, frame_index=(0,) * count)
        return media

    def _decode_video(
        self, row: int, seed: int, members: dict[int, Extent], audio: bool, frames: bool
    ) -> _Media:
        videos = [slot for slot in self.table.video_slots if slot in members]
        if not videos and self.partial:
            return _Media()
        if not videos:
            wanted = [name for name, missing in (("sound", audio), ("frames", frames)) if missing]
            raise _BadMemberError(f"the sample has no {' and no '.join(wanted)}")
        stored, chosen = VIDEO_FRAMES, ()
        if self.choose_frames is not None and frames:
            stored = max(stored, frames_wanted(self.choose_frames))
            chosen = tuple(self.choose_frames(stored, seed))
        data = self._read_member(row, videos[0], members[videos[0]])
        waveform, pictures, times = decode_video(data, stored, chosen, self.image_size, self.keep_truncated)
        media = _Media() if pictures is None else _Media(None, pictures, chosen, stored, times)
        return media._replace(waveform=waveform if audio else None)

    def _read_member(self, row: int, slot: int, extent: Extent) -> memoryview:
        """The bytes of a member, in memory of their own."""
        shard, suffix, size = self.table.shard_of(row), self.table.slots[slot], (1 + extent.blocks) * BLOCK
        if extent.offset + size > self.index.shards[shard].bytes:  # before room is made for it
            raise _BadMemberError(f"the shard ends inside {suffix}")
        buffer = bytearray(size)
        if os.preadv(self._descriptor(shard), [buffer], extent.offset) < size:
            raise _BadMemberError(f"the shard ends inside {suffix}")
        try:
            header = tarfile.TarInfo.frombuf(buffer[:BLOCK], "utf-8", "surrogateescape")  # type: ignore[arg-type]
        except tarfile.HeaderError as error:
            raise _BadMemberError(f"the tar header of {suffix} is damaged: {error}") from error
        key, found = split_name(header.name)
        if self.table.plain and (key_checksum(key) != self.table.key_checksums[row] or found != suffix):
            raise _BadMemberError(f"the shard holds {header.name!r} where this clip's {suffix} should be")
        if -(-header.size // BLOCK) != extent.blocks:
            raise _BadMemberError(
                f"{suffix} has {header.size} bytes, not the {extent.blocks} blocks of the table"
            )
        return memoryview(buffer)[BLOCK : BLOCK + header.size]

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        info = self.index.shards[shard]
        path = self.store.path(info)
        check_size(path, info)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"shard {path} can't be opened: {error.strerror}") from error
        self._close_spare()
        self._open[shard] = descriptor
        return descriptor

    def _close_spare(self) -> None:
        """Closes shards that the cache has removed, which hold disk space while open, and the oldest ones."""
        for shard, descriptor in list(self._open.items()):
            if not os.fstat(descriptor).st_nlink or len(self._open) >= _MAX_OPEN_SHARDS:
                os.close(self._open.pop(shard))

    def close(self) -> None:
        """Closes the shards that this process has open, and its decoder; reading opens them again."""
        if self._guard is not None:
            self._guard.close()
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()
