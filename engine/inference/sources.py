"""What clips there are: those of a set of shards, or pieces of videos, sounds or pictures."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.decode import DecodeError, decode_audio, decode_frame, resize_and_crop
from datasets.guard import Guard
from datasets.loading.config import ClipNeeds
from datasets.loading.frames import FrameChoice, frames_wanted
from datasets.loading.reader import VIDEO_FRAMES, ClipReader
from datasets.media.container import SAMPLE_RATE, MediaClip, MediaError, MediaSettings, read_media, read_sound
from datasets.prepare.encode import encode_jpeg
from datasets.prepare.sources import printable
from datasets.shards.manifest import INDEX_NAME
from datasets.subtitles import find_subtitles, read_subtitles, said_between
from engine.inference.listing import SUFFIXES, Listing, MediaKind, frames_are_enough, list_media

_SHORTER_SIDE = 256  # as in prepared shards


@dataclass(frozen=True)
class ReadSettings:
    """Which files are taken, and how they are read.

    Attributes:
        only: Which kind of file, where there are several.
        keep_truncated: Take what is there of sounds and videos that are damaged or cut off.
        audio_track: Which sound of videos that have several; see ``MediaSettings``.
        video_track: Which picture.
        num_frames: Into how many frames a video is divided; more where the model wants more.
        shorter_side: Of a video's frames before they are brought to the model's size, in pixels; None for 256, or the
            model's size where that is larger.
        first_channel_only: See ``MediaSettings``.
        jpeg_quality: Frames of a video go through a JPEG of this quality, as those in shards do; None for not.
        partial: A piece with text whose file can't be read is its text alone, as in shards made with ``--partial``.
    """

    only: MediaKind | None = None
    keep_truncated: bool = False
    audio_track: int | str | None = None
    video_track: int | str | None = None
    num_frames: int = VIDEO_FRAMES
    shorter_side: int | None = None
    first_channel_only: bool = False
    jpeg_quality: int | None = None
    partial: bool = False


class Piece(NamedTuple):
    """What is read of a file.

    Attributes:
        name: The file, relative to its folder.
        start: Where it begins, in seconds.
        end: Where it ends; None for the end of the file.
        text: What is said in it; None where at most subtitles beside the file tell.
    """

    name: str
    start: float = 0.0
    end: float | None = None
    text: str | None = None


@dataclass(frozen=True)
class ClipSource:
    """Clips in a fixed order.

    Attributes:
        clips: A map-style dataset of `Ticket`, giving a `Clip` or a `ReadFailure`.
        count: Number of clips.
        num_samples: Samples of sound that are taken of each.
        classes: Names of their classes; empty where they have no labels.
        identity: What makes it the same source again: changes where clips come, go or are replaced.
        others: How many files of each other ending lie there, which are not taken.
        pieces: Of files, what is read of which; None of shards.
    """

    clips: Dataset[Clip | ReadFailure]
    count: int
    num_samples: int
    classes: tuple[str, ...]
    identity: dict[str, object]
    others: dict[str, int] = field(default_factory=dict)
    pieces: Sequence[Piece] | None = None


def is_shards(location: str) -> bool:
    """Whether a folder holds a set of shards."""
    return (Path(location) / INDEX_NAME).is_file()


def open_source(
    location: str, needs: ClipNeeds, settings: ReadSettings | None = None, *, check_shards: bool = True
) -> ClipSource:
    """Opens shards, or the media files below a folder, of each its beginning, as long as the model hears.

    Args:
        location: The folder.
        needs: What is read of a clip, with ``held_out_frames``.
        settings: Which files, and how they are read.
        check_shards: As of `open_shards`.

    Raises:
        ValueError: There is nothing in it that the model can take, or several kinds of files.
    """
    settings = settings or ReadSettings()
    if is_shards(location):
        return open_shards(location, needs, settings, check_shards=check_shards)
    listing = list_media(Path(location), needs, settings.only)
    end = needs.num_samples / SAMPLE_RATE if listing.kind == "video" else None
    return open_files(listing, [Piece(name, end=end) for name in listing.names], needs, settings)


def open_shards(
    location: str, needs: ClipNeeds, settings: ReadSettings, *, check_shards: bool = True
) -> ClipSource:
    """Opens a set of shards, of which each clip is taken as it is.

    Args:
        location: Its folder.
        needs: What is read of a clip.
        settings: How the shards are read.
        check_shards: See `ClipReader`; one of several processes is to do so.

    Raises:
        ShardError: It is damaged, or has nothing that the model can take.
    """
    reader = ClipReader(
        Path(location),
        audio=needs.audio,
        choose_frames=needs.held_out_frames,
        image_size=needs.image_size,
        text=needs.text,
        partial=needs.partial,
        substitutes=False,
        keep_truncated=settings.keep_truncated,
        check_shards=check_shards,
    )
    classes = tuple(label.name for label in reader.index.labels)
    identity: dict[str, object] = {"shards": reader.index.fingerprint}
    return ClipSource(reader, len(reader), needs.num_samples, classes, identity)


def open_files(
    listing: Listing, pieces: Sequence[Piece], needs: ClipNeeds, settings: ReadSettings
) -> ClipSource:
    """Pieces of files as clips.

    Args:
        listing: The files.
        pieces: What is read of them, in order.
        needs: What is read of a clip.
        settings: How.
    """
    files = MediaFiles(listing, pieces, needs, settings)
    identity = _identity(listing, needs, settings)
    identity["pieces"] = hashlib.sha256(repr([tuple(piece) for piece in pieces]).encode()).hexdigest()
    return ClipSource(files, len(pieces), needs.num_samples, (), identity, listing.others, pieces)


def _identity(listing: Listing, needs: ClipNeeds, settings: ReadSettings) -> dict[str, object]:
    paths = [listing.folder / name for name in listing.names]
    if needs.text:
        paths += [beside for path in paths if (beside := find_subtitles(path)) is not None]
    stats = [path.stat() for path in paths if path.exists()]
    changes = max((stat.st_mtime_ns for stat in stats), default=0), sum(stat.st_size for stat in stats)
    identity = {"folder": str(listing.folder.resolve()), "kind": listing.kind, "files": len(stats)}
    how = {name: value for name, value in vars(settings).items() if name != "only"}
    return identity | {"changes": changes, "read": how}


class MediaFiles(Dataset[Clip | ReadFailure]):
    """Pieces of files as clips, named by the files' paths within the folder.

    Args:
        listing: The files.
        pieces: What is read of them.
        needs: What the model takes of a clip; only that is read.
        settings: How they are read.
    """

    def __init__(
        self,
        listing: Listing,
        pieces: Sequence[Piece],
        needs: ClipNeeds,
        settings: ReadSettings | None = None,
    ) -> None:
        self.folder, self.pieces, self.needs = listing.folder, pieces, needs
        self.kind: MediaKind = listing.kind
        self.settings = settings or ReadSettings()
        self.audio = needs.audio and self.kind != "picture"
        self.choose_frames = None if self.kind == "sound" else needs.held_out_frames
        self._guarded: Guard[[Piece, Ticket], Clip] | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, ticket: Ticket) -> Clip | ReadFailure:
        piece = self.pieces[ticket.row]
        if self._guarded is None:
            self._guarded = Guard(copy.copy(self)._read)
        try:
            return self._guarded(piece, ticket)
        except (OSError, MemoryError, ValueError, OverflowError) as error:  # decoders' own are ValueErrors
            place = f"at {piece.start:.3f} s: " if piece.start else ""
            return ReadFailure(printable(piece.name), str(self.folder), f"{place}{error}")

    def __getitems__(self, tickets: Sequence[Ticket]) -> list[Clip | ReadFailure]:
        """Reads a batch of tickets."""
        return [self[ticket] for ticket in tickets]

    def _read(self, piece: Piece, ticket: Ticket) -> Clip:
        path = self.folder / piece.name
        text = self._text(path, piece)
        clip = Clip(printable(piece.name), ticket.row, ticket.seed, None, None, text=text)
        try:
            clip = self._with_media(clip, path, piece)
        except (MediaError, DecodeError, FileNotFoundError):
            if piece.text is None or not self.settings.partial:
                raise
        return self._complete(clip) if self.needs.partial else clip

    def _with_media(self, clip: Clip, path: Path, piece: Piece) -> Clip:
        """The clip with what the model takes of its file.

        Raises:
            MediaError: It can't be read, as do ``DecodeError`` and ``FileNotFoundError``.
        """
        if path.suffix.lower() not in SUFFIXES[self.kind]:
            raise MediaError("unknown_ending", f"it is no {self.kind} by its name")
        if self.kind == "video" and (self.audio or self.choose_frames is not None):
            clip = self._with_video(clip, path, piece)
        elif self.kind == "sound" and self.audio:
            clip = replace(clip, waveform=self._sound(path, piece))
        elif self.kind == "picture" and self.choose_frames is not None:
            picture = decode_frame(bytearray(path.read_bytes()), self.needs.image_size)
            count = _frame_count(self.choose_frames, clip.seed)
            frames = torch.stack([picture] * count)
            clip = replace(clip, frames=frames, frame_index=(0,) * count, num_stored=1)
        return clip

    def _complete(self, clip: Clip) -> Clip:
        """A clip with nothing in the place of what its kind of file lacks, as `ClipReader` has it of partial clips."""
        if self.needs.audio and clip.waveform is None:
            clip = replace(clip, waveform=torch.empty(0, dtype=torch.int16))
        if self.needs.held_out_frames is not None and clip.frames is None:
            size, count = self.needs.image_size, _frame_count(self.needs.held_out_frames, clip.seed)
            black = torch.zeros(count, 3, size, size, dtype=torch.uint8)
            clip = replace(clip, frames=black, frame_index=(0,) * count)
        return clip

    def _text(self, path: Path, piece: Piece) -> str | None:
        """What is said; empty where subtitles say that nothing is."""
        if not self.needs.text or piece.text is not None:
            return piece.text
        subtitles = find_subtitles(path)
        if subtitles is None:
            return None
        return said_between(read_subtitles(subtitles), piece.start, piece.end) or ""

    def _sound(self, path: Path, piece: Piece) -> Tensor:
        settings = self.settings
        whole = not piece.start and piece.end is None
        if whole and not settings.first_channel_only and settings.audio_track is None:
            return decode_audio(path.read_bytes(), settings.keep_truncated)
        media = MediaSettings(
            SAMPLE_RATE, first_channel_only=settings.first_channel_only, audio_track=settings.audio_track
        )
        clip = read_sound(path, piece.start, piece.end, media)
        self._check(clip)
        return torch.from_numpy(clip.waveform)

    def _check(self, found: MediaClip, needs_sound: bool = True) -> None:
        if found.truncated and not self.settings.keep_truncated:
            seconds = f"{found.duration:.3f} s of sound could be read"
            raise MediaError("truncated", f"damaged or cut off; {seconds} (--keep_truncated keeps it)")
        if needs_sound and not found.duration:
            raise MediaError("no_audio", "the file has no sound")

    def _with_video(self, clip: Clip, path: Path, piece: Piece) -> Clip:
        wanted: tuple[int, ...] = ()
        settings, stored = self.settings, self.settings.num_frames
        if self.choose_frames is not None:
            stored = max(stored, frames_wanted(self.choose_frames))
            wanted = tuple(self.choose_frames(stored, clip.seed))
        media = MediaSettings(
            SAMPLE_RATE,
            stored,
            settings.shorter_side or max(_SHORTER_SIDE, self.needs.image_size),
            settings.first_channel_only,
            settings.audio_track,
            settings.video_track,
        )
        places = sorted(set(wanted))
        needs_sound = not frames_are_enough(self.needs)
        found = read_media(path, piece.start, piece.end, media, places, needs_sound=needs_sound)
        self._check(found, needs_sound)
        clip = replace(clip, waveform=torch.from_numpy(found.waveform) if self.audio else None)
        if not wanted:
            return clip
        pictures = dict(zip(places, map(self._picture, found.frames), strict=True))
        times = dict(zip(places, found.frame_times, strict=True))
        return replace(
            clip,
            frames=torch.stack([pictures[place] for place in wanted]),
            frame_index=wanted,
            num_stored=stored,
            frame_times=torch.tensor([times[place] for place in wanted]),
        )

    def _picture(self, frame: np.ndarray) -> Tensor:
        """(3, H, W) uint8 of an (H, W, 3) frame, as the model takes it."""
        size, quality = self.needs.image_size, self.settings.jpeg_quality
        if quality is not None:
            return decode_frame(bytearray(encode_jpeg(frame, quality)), size)
        return resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1), size)


def _frame_count(choose: FrameChoice, seed: int) -> int:
    """How many frames the model takes where there are no different ones."""
    return len(choose(frames_wanted(choose), seed))
