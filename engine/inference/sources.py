"""What clips there are: those of a set of shards, or pieces of videos, sounds or pictures."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.decode import decode_audio, decode_frame, resize_and_crop
from datasets.guard import Guard
from datasets.loading.config import ClipNeeds
from datasets.loading.frames import frames_wanted
from datasets.loading.reader import VIDEO_FRAMES, ClipReader
from datasets.media.container import SAMPLE_RATE, MediaError, MediaSettings, read_media, read_sound
from datasets.media.suffixes import PICTURE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES
from datasets.prepare.encode import encode_jpeg
from datasets.prepare.sources import printable
from datasets.shards.manifest import INDEX_NAME
from datasets.subtitles import find_subtitles, read_subtitles, said_between

_SHORTER_SIDE = 256  # as in prepared shards

MediaKind = Literal["video", "sound", "picture"]

SUFFIXES: dict[MediaKind, frozenset[str]] = {
    "video": frozenset(VIDEO_SUFFIXES),
    "sound": frozenset(SOUND_SUFFIXES),
    "picture": frozenset(PICTURE_SUFFIXES),
}


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
    """

    only: MediaKind | None = None
    keep_truncated: bool = False
    audio_track: int | str | None = None
    video_track: int | str | None = None
    num_frames: int = VIDEO_FRAMES
    shorter_side: int | None = None
    first_channel_only: bool = False
    jpeg_quality: int | None = None


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


def open_source(location: str, needs: ClipNeeds, settings: ReadSettings | None = None) -> ClipSource:
    """Opens shards, or the media files below a folder, of each its beginning, as long as the model hears.

    Args:
        location: The folder.
        needs: What is read of a clip, with ``held_out_frames``.
        settings: Which files, and how they are read.

    Raises:
        ValueError: There is nothing in it that the model can take, or several kinds of files.
    """
    settings = settings or ReadSettings()
    if is_shards(location):
        return open_shards(location, needs, settings)
    listing = list_media(Path(location), needs, settings.only)
    end = needs.num_samples / SAMPLE_RATE if listing.kind == "video" else None
    return open_files(listing, [Piece(name, end=end) for name in listing.names], needs, settings)


def open_shards(location: str, needs: ClipNeeds, settings: ReadSettings) -> ClipSource:
    """Opens a set of shards, of which each clip is taken as it is.

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
    )
    classes = tuple(label.name for label in reader.index.labels)
    identity: dict[str, object] = {"shards": reader.index.fingerprint}
    return ClipSource(reader, len(reader), needs.num_samples, classes, identity)


@dataclass(frozen=True)
class Listing:
    """The files of one kind below a folder.

    Attributes:
        folder: Where they lie, at any depth.
        kind: What they are.
        names: Their paths within the folder.
        others: How many files of each other ending lie there.
    """

    folder: Path
    kind: MediaKind
    names: list[str]
    others: dict[str, int] = field(default_factory=dict)


def list_media(location: Path, needs: ClipNeeds, only: MediaKind | None = None) -> Listing:
    """The files below a folder, or the one file.

    Args:
        location: The folder or file.
        needs: What the model takes.
        only: Which kind, where there are several.

    Raises:
        ValueError: There are none, several kinds, or none that the model can take.
    """
    if location.is_file():
        return kind_of(location.parent, [location.name], needs, only)
    if not location.is_dir():
        raise ValueError(f"{location}: there is no such folder")
    return kind_of(location, list_files(location), needs, only)


def kind_of(folder: Path, listed: Sequence[str], needs: ClipNeeds, only: MediaKind | None = None) -> Listing:
    """Those of the files listed that are of the one kind that there is; arguments and errors as of `list_media`."""
    wanted: list[MediaKind] = list(SUFFIXES) if only is None else [only]
    found = {
        kind: [name for name in listed if Path(name).suffix.lower() in SUFFIXES[kind]] for kind in wanted
    }
    kinds = [kind for kind, names in found.items() if names]
    if not kinds:
        missing = only or "video, sound or picture"
        raise ValueError(f"{folder} holds no {missing} files, and no {INDEX_NAME} of shards")
    if len(kinds) > 1:
        counts = ", ".join(f"{len(found[kind])} {kind}" for kind in kinds)
        raise ValueError(f"{folder} holds several kinds of files ({counts}); name one with --only")
    kind = cast(MediaKind, kinds[0])
    audio, visual = kind != "picture" and needs.audio, kind != "sound" and needs.held_out_frames is not None
    if not audio and not visual:
        raise ValueError(f"{folder} holds {kind} files, which this model can't take")
    taken = set(found[kind])
    others = Counter(Path(name).suffix.lower() for name in listed if name not in taken)
    return Listing(folder, kind, found[kind], others)


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
        self.folder, self.kind, self.pieces, self.needs = listing.folder, listing.kind, pieces, needs
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
        name, text = printable(piece.name), self._text(path, piece)
        if self.kind == "sound":
            return Clip(name, ticket.row, ticket.seed, self._sound(path, piece), None, text=text)
        if self.kind == "video":
            return self._read_video(path, piece, ticket, text)
        assert self.choose_frames is not None
        picture = decode_frame(bytearray(path.read_bytes()), self.needs.image_size)
        chosen = tuple(self.choose_frames(1, ticket.seed))
        frames = torch.stack([picture for _ in chosen])
        return Clip(name, ticket.row, ticket.seed, None, frames, frame_index=chosen, num_stored=1, text=text)

    def _text(self, path: Path, piece: Piece) -> str | None:
        if not self.needs.text or piece.text is not None:
            return piece.text
        subtitles = find_subtitles(path)
        return None if subtitles is None else said_between(read_subtitles(subtitles), piece.start, piece.end)

    def _sound(self, path: Path, piece: Piece) -> Tensor:
        if not piece.start and piece.end is None:
            return decode_audio(path.read_bytes(), self.settings.keep_truncated)
        clip = read_sound(path, piece.start, piece.end, MediaSettings(SAMPLE_RATE))
        self._check(clip.truncated, clip.duration)
        return torch.from_numpy(clip.waveform)

    def _check(self, truncated: bool, seconds: float) -> None:
        if truncated and not self.settings.keep_truncated:
            detail = f"damaged or cut off; {seconds:.3f} s of sound could be read (--keep_truncated keeps it)"
            raise MediaError("truncated", detail)
        if not seconds:
            raise MediaError("no_audio", "the file has no sound")

    def _read_video(self, path: Path, piece: Piece, ticket: Ticket, text: str | None) -> Clip:
        wanted: Sequence[int] = ()
        settings, stored = self.settings, self.settings.num_frames
        if self.choose_frames is not None:
            stored = max(stored, frames_wanted(self.choose_frames))
            wanted = tuple(self.choose_frames(stored, ticket.seed))
        media = MediaSettings(
            SAMPLE_RATE,
            stored,
            settings.shorter_side or max(_SHORTER_SIDE, self.needs.image_size),
            settings.first_channel_only,
            settings.audio_track,
            settings.video_track,
        )
        places = sorted(set(wanted))
        clip = read_media(path, piece.start, piece.end, media, places)
        self._check(clip.truncated, clip.duration)
        waveform = torch.from_numpy(clip.waveform) if self.audio else None
        if not wanted:
            return Clip(printable(piece.name), ticket.row, ticket.seed, waveform, None, text=text)
        pictures = dict(zip(places, map(self._picture, clip.frames), strict=True))
        times = dict(zip(places, clip.frame_times, strict=True))
        return Clip(
            printable(piece.name),
            ticket.row,
            ticket.seed,
            waveform,
            torch.stack([pictures[place] for place in wanted]),
            frame_index=tuple(wanted),
            num_stored=stored,
            frame_times=torch.tensor([times[place] for place in wanted]),
            text=text,
        )

    def _picture(self, frame: np.ndarray) -> Tensor:
        """(3, H, W) uint8 of an (H, W, 3) frame, as the model takes it."""
        size, quality = self.needs.image_size, self.settings.jpeg_quality
        if quality is not None:
            return decode_frame(bytearray(encode_jpeg(frame, quality)), size)
        return resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1), size)


def list_files(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it, sorted; hidden ones not."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder)
        found += [str(relative / name) for name in files if not name.startswith(".")]
    return sorted(found)
