"""Which pieces of files are looked at: short files whole, long ones window by window, or the rows of a list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from datasets.guard import DecoderDiedError, Guard
from datasets.loading.config import ClipNeeds
from datasets.media.length import Kind, media_length
from datasets.prepare.labels import LabelRow, read_label_file
from datasets.subtitles import find_subtitles
from engine.inference.listing import SUFFIXES, Listing, MediaKind, frames_are_enough, kind_of, list_media
from engine.inference.sources import Piece
from engine.parallel.world import World


def find_pieces(
    location: Path, needs: ClipNeeds, only: MediaKind | None, window: float, hop: float, world: World
) -> tuple[Listing, list[Piece]]:
    """The pieces of a file, of all files below a folder, or of those that a CSV with a column ``path`` lists.

    A row of a CSV with text, a start or an end is one piece, as it is for ``datasets.prepare``, whether the model reads
    text or not; so is one whose file is no video, sound or picture by its name, to be listed among what can't be read.
    Subtitles beside a file belong to the pieces in whose time they are shown.

    Args:
        location: The file, folder or CSV.
        needs: What the model takes.
        only: Which kind of file, where there are several.
        window: Seconds of a window.
        hop: Seconds from one window's start to the next one's.
        world: The processes; every rank calls it.

    Raises:
        ValueError: There is nothing that the model can take.
    """
    if location.suffix.lower() != ".csv":
        listing = list_media(location, needs, only)
        rows = [LabelRow(name, None, None, (), None) for name in listing.names]
    else:
        rows = list(read_label_file(location).rows())
        listing = kind_of(location.parent, [row.name for row in rows], needs, only)
        of_other_kinds = {row.name for row in rows if _is_media(row.name)} - set(listing.names)
        rows = [row for row in rows if row.name not in of_other_kinds]
        listing = replace(listing, others=Counter(Path(name).suffix.lower() for name in of_other_kinds))
    whole = [row for row in rows if _is_open(row, listing.kind)]
    kinds: list[tuple[Kind, ...]] = [("audio",) if listing.kind == "sound" else ("video", "audio")]
    if listing.kind == "video" and frames_are_enough(needs):
        kinds.append(("video",))
    lengths = _lengths(listing.folder, sorted({row.name for row in whole}), kinds, world)
    pieces: list[Piece] = []
    for row in rows:
        if not _is_open(row, listing.kind):
            pieces.append(Piece(row.name, row.start or 0.0, row.end, row.text if needs.text else None))
            continue
        subtitled = needs.text and find_subtitles(listing.folder / row.name) is not None
        spans = windows(lengths[row.name], window, hop)
        if len(spans) == 1 and subtitled:
            spans = [(0.0, None)]
        pieces += [Piece(row.name, start, end) for start, end in spans]
    return listing, pieces


def _is_open(row: LabelRow, kind: MediaKind) -> bool:
    """Whether the file's length decides about a row's pieces."""
    timed = kind != "picture" and _is_media(row.name)
    return timed and row.start is None and row.end is None and row.text is None


def _is_media(name: str) -> bool:
    return any(Path(name).suffix.lower() in suffixes for suffixes in SUFFIXES.values())


def windows(length: float | None, window: float, hop: float) -> list[tuple[float, float | None]]:
    """Start and end of each window of a file, in seconds; an end of None is the file's.

    A last window of which less than half lies in the file is left out, and there is one at least: with ``hop`` equal to
    ``window`` these are the clips into which ``datasets.prepare`` cuts a file.

    Args:
        length: Of the file; None where it is not known.
        window: Of a window.
        hop: From one start to the next.
    """
    if length is None or length <= window:
        return [(0.0, None)]
    count = max(1, math.floor((length - window / 2) / hop + 1e-6) + 1)
    return [(round(i * hop, 6), round(i * hop + window, 6)) for i in range(count)]


def _lengths(
    folder: Path, names: list[str], kinds: Sequence[tuple[Kind, ...]], world: World
) -> dict[str, float | None]:
    """The length of each file in seconds, by the first of ``kinds`` that tells it; None where it can't be read."""
    read = Guard(media_length)

    def lengths(own: Iterable[str]) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name in own:
            try:
                tried = (read(folder / name, streams) for streams in kinds)
                found[name] = next((length for length in tried if length is not None), None)
            except (DecoderDiedError, OSError):
                found[name] = None
        return found

    own = names[world.rank :: world.size]
    shown = None if world.is_main else True
    found = lengths(tqdm(own, desc="reading lengths", unit="file", disable=shown, leave=False))
    read.close()
    return {name: length for part in world.gather_objects(found) for name, length in part.items()}
