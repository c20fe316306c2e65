"""VGGSound: one sound class for each clip of ten seconds."""

from __future__ import annotations

from pathlib import Path

from datasets.manifests.rows import (
    Found,
    ManifestError,
    ManifestRow,
    find_one,
    is_number,
    list_media,
    read_rows,
)
from datasets.untrusted import shown


def read_vggsound(folder: Path) -> Found:
    """VGGSound: ``vggsound.csv`` and clips ``ID_000030.mp4`` at any depth.

    Raises:
        ManifestError: The CSV is missing, or a row is not id, start, label, split.
    """
    found = Found(folder)
    table = find_one(folder, "vggsound.csv", "id, start, label, split")
    files = list_media(folder, (".mp4", ".mkv", ".webm"))
    places = {Path(name).stem: name for name in files}
    for line, cells in read_rows(table):
        where = f"{table.name}:{line}"
        if len(cells) != 4 or not is_number(cells[1].strip()):
            raise ManifestError(f"{table}:{line}: {shown(','.join(cells))} is not id, start, label, split")
        name = f"{cells[0]}_{int(cells[1]):06d}"
        found.add(
            ManifestRow(places.get(name, f"{name}.mp4"), {"sound": cells[2]}, "", cells[3].strip()), where
        )
    found.note_extra(files)
    return found
