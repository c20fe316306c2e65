"""What there is to embed: the clips of a set of shards, or the videos, sounds or pictures below a folder."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import Dataset

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.decode import SAMPLE_RATE, DecodeError, decode_audio, decode_frame, resize_and_crop
from datasets.guard import DecoderDiedError, Guard
from datasets.loading.frames import frames_wanted
from datasets.loading.reader import VIDEO_FRAMES, ClipReader
from datasets.media.container import MediaError, MediaSettings, read_media
from datasets.media.suffixes import PICTURE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES
from datasets.shards.manifest import INDEX_NAME
from engine.embed.embedder import Embedder

MediaKind = Literal["video", "sound", "picture"]

SUFFIXES: dict[MediaKind, frozenset[str]] = {
    "video": frozenset(VIDEO_SUFFIXES),
    "sound": frozenset(SOUND_SUFFIXES),
    "picture": frozenset(PICTURE_SUFFIXES),
}


@dataclass(frozen=True)
class EmbedSource:
    """Clips to embed, in a fixed order.

    Attributes:
        clips: A map-style dataset of `Ticket`, giving a `Clip` or a `ReadFailure`.
        count: Number of clips.
        classes: Names of their classes; empty where they have no labels.
        identity: What makes it the same source again: changes where clips come, go or are replaced.
        others: How many files of each other ending lie there, which are not taken.
    """

    clips: Dataset[Clip | ReadFailure]
    count: int
    classes: tuple[str, ...]
    identity: dict[str, object]
    others: dict[str, int] = field(default_factory=dict)


def open_source(
    location: str,
    embedder: Embedder,
    only: MediaKind | None = None,
    keep_truncated: bool = False,
    audio_track: int | str | None = None,
    video_track: int | str | None = None,
) -> EmbedSource:
    """Opens shards, or the media files below a folder.

    Args:
        location: The folder.
        embedder: What will take the clips; only what it needs is read.
        only: Which kind of file, where there are several.
        keep_truncated: Take what is there of sounds and videos that are damaged or cut off.
        audio_track: Which sound of videos that have several; see ``MediaSettings``.
        video_track: Which picture.

    Raises:
        ValueError: There is nothing in it that the embedder can take, or several kinds of files.
    """
    folder = Path(location)
    if (folder / INDEX_NAME).is_file():
        return _open_shards(folder, embedder, keep_truncated)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    files = MediaFiles(folder, embedder, only, keep_truncated, audio_track, video_track)
    stats = [(folder / name).stat() for name in files.names]
    changes = max(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats)
    identity = {"folder": str(folder.resolve()), "kind": files.kind, "files": len(stats), "changes": changes}
    settings = {"keep_truncated": keep_truncated, "audio_track": audio_track, "video_track": video_track}
    identity |= {name: value for name, value in settings.items() if value not in (None, False)}
    return EmbedSource(files, len(files), (), identity, files.others)


def _open_shards(folder: Path, embedder: Embedder, keep_truncated: bool) -> EmbedSource:
    reader = ClipReader(
        folder,
        audio=embedder.audio,
        choose_frames=embedder.choose_frames,
        image_size=embedder.image_size,
        substitutes=False,
        keep_truncated=keep_truncated,
    )
    classes = tuple(label.name for label in reader.index.labels)
    return EmbedSource(reader, len(reader), classes, {"shards": reader.index.fingerprint})


class MediaFiles(Dataset[Clip | ReadFailure]):
    """Files as clips, named by their paths within the folder.

    Args:
        folder: Where they lie, at any depth.
        embedder: What they are read for.
        only: Which kind, where there are several.
        keep_truncated: See ``open_source``.
        audio_track: See ``open_source``.
        video_track: See ``open_source``.

    Raises:
        ValueError: There are none, several kinds, or none that the embedder can take.

    Attributes:
        others: How many files of each other ending lie there.
    """

    def __init__(
        self,
        folder: Path,
        embedder: Embedder,
        only: MediaKind | None = None,
        keep_truncated: bool = False,
        audio_track: int | str | None = None,
        video_track: int | str | None = None,
    ) -> None:
        self.folder = folder
        listed = list_files(folder)
        found = {
            kind: [name for name in listed if Path(name).suffix.lower() in SUFFIXES[kind]]
            for kind in SUFFIXES
            if only in (None, kind)
        }
        kinds = [kind for kind, names in found.items() if names]
        if not kinds:
            kind = only or "video, sound or picture"
            raise ValueError(f"{folder} holds no {kind} files, and no {INDEX_NAME} of shards")
        if len(kinds) > 1:
            counts = ", ".join(f"{len(found[kind])} {kind}" for kind in kinds)
            raise ValueError(f"{folder} holds several kinds of files ({counts}); name one with --only")
        self.kind = kinds[0]
        self.names = found[self.kind]
        taken = set(self.names)
        self.others = Counter(Path(name).suffix.lower() for name in listed if name not in taken)
        self.audio = embedder.audio and self.kind != "picture"
        self.choose_frames = None if self.kind == "sound" else embedder.choose_frames
        if not self.audio and self.choose_frames is None:
            raise ValueError(f"{folder} holds {self.kind} files, which this model can't take")
        self.image_size, self.num_samples = embedder.image_size, embedder.num_samples
        self._keep_truncated, self._tracks = keep_truncated, (audio_track, video_track)
        self._guarded: Guard[[str, Ticket], Clip] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, ticket: Ticket) -> Clip | ReadFailure:
        name = self.names[ticket.row]
        if self._guarded is None:
            self._guarded = Guard(copy.copy(self)._read)
        try:
            return self._guarded(name, ticket)
        except (DecodeError, DecoderDiedError, MediaError, OSError) as error:
            return ReadFailure(name, str(self.folder), str(error))

    def __getitems__(self, tickets: Sequence[Ticket]) -> list[Clip | ReadFailure]:
        """Reads a batch of tickets."""
        return [self[ticket] for ticket in tickets]

    def _read(self, name: str, ticket: Ticket) -> Clip:
        path = self.folder / name
        if self.kind == "sound":
            return Clip(
                name, ticket.row, ticket.seed, decode_audio(path.read_bytes(), self._keep_truncated), None
            )
        if self.kind == "video":
            return self._read_video(path, name, ticket)
        assert self.choose_frames is not None
        picture = decode_frame(bytearray(path.read_bytes()), self.image_size)
        chosen = tuple(self.choose_frames(1, ticket.seed))
        frames = torch.stack([picture for _ in chosen])
        return Clip(name, ticket.row, ticket.seed, None, frames, frame_index=chosen, num_stored=1)

    def _read_video(self, path: Path, name: str, ticket: Ticket) -> Clip:
        """The beginning of a video, as long as the model hears."""
        wanted: Sequence[int] = ()
        stored = VIDEO_FRAMES
        if self.choose_frames is not None:
            stored = max(stored, frames_wanted(self.choose_frames))
            wanted = self.choose_frames(stored, ticket.seed)
        audio_track, video_track = self._tracks
        settings = MediaSettings(
            SAMPLE_RATE, stored, max(256, self.image_size), audio_track=audio_track, video_track=video_track
        )
        places = sorted(set(wanted))
        end = self.num_samples / SAMPLE_RATE
        clip = read_media(path, end=end, settings=settings, frame_indices=places)
        if clip.truncated and not self._keep_truncated:
            detail = f"damaged or cut off; {clip.duration:.3f} s of sound could be read (--keep_truncated keeps it)"
            raise MediaError("truncated", detail)
        if not len(clip.waveform):
            raise MediaError("no_audio", "the file has no sound")
        pictures = {
            place: resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1), self.image_size)
            for place, frame in zip(places, clip.frames, strict=True)
        }
        waveform = torch.from_numpy(clip.waveform) if self.audio else None
        if not len(wanted):
            return Clip(name, ticket.row, ticket.seed, waveform, None)
        times = dict(zip(places, clip.frame_times, strict=True))
        return Clip(
            name,
            ticket.row,
            ticket.seed,
            waveform,
            torch.stack([pictures[place] for place in wanted]),
            frame_index=tuple(wanted),
            num_stored=stored,
            frame_times=torch.tensor([times[place] for place in wanted]),
        )


def list_files(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it, sorted; hidden ones not."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder)
        found += [str(relative / name) for name in files if not name.startswith(".")]
    return sorted(found)
