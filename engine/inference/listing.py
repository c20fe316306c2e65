"""The videos, sounds or pictures below a folder, or those that a list names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from datasets.loading.config import ClipNeeds
from datasets.media.suffixes import PICTURE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES
from datasets.shards.manifest import INDEX_NAME
from datasets.subtitles import SUFFIXES as SUBTITLES

MediaKind = Literal["video", "sound", "picture"]

SUFFIXES: dict[MediaKind, frozenset[str]] = {
    "video": frozenset(VIDEO_SUFFIXES),
    "sound": frozenset(SOUND_SUFFIXES),
    "picture": frozenset(PICTURE_SUFFIXES),
}


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
    if not (audio or visual or needs.text):  # text may lie beside any file
        raise ValueError(f"{folder} holds {kind} files, which this model can't take")
    taken = set(found[kind])
    if needs.text:
        taken |= _subtitles_of(taken, set(listed))
    others = Counter(Path(name).suffix.lower() for name in listed if name not in taken)
    return Listing(folder, kind, found[kind], others)


def frames_are_enough(needs: ClipNeeds) -> bool:
    """Whether a video without a sound track is of use."""
    return needs.held_out_frames is not None and (needs.partial or not needs.audio)


def _subtitles_of(names: set[str], listed: set[str]) -> set[str]:
    """Those of the files listed that `find_subtitles` finds beside ``names``."""
    beside = ([str(Path(name).with_suffix(suffix)) for suffix in SUBTITLES] for name in names)
    return {found for places in beside if (found := next((p for p in places if p in listed), None))}


def list_files(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it, sorted; hidden ones not."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder)
        found += [str(relative / name) for name in files if not name.startswith(".")]
    return sorted(found)
