"""A folder of small real videos, and what ``datasets.prepare`` is told about it."""

from __future__ import annotations

from pathlib import Path

from support.videos import write_video

from datasets.media.container import MediaSettings
from datasets.prepare.run import PrepareConfig

MEDIA = MediaSettings(num_frames=3)


def config(source: Path, out: Path, **settings) -> PrepareConfig:
    defaults = {"media": MEDIA, "min_seconds": 0.5, "num_workers": 1, "shard_megabytes": 0.05}
    return PrepareConfig(source=str(source), out=str(out), **(defaults | settings))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_films(folder: Path) -> Path:
    """Writes twelve good clips in three class folders."""
    for i in range(12):
        name = folder / ("cat", "dog", "owl")[i % 3] / f"clip.{i:02d}-x_.mp4"
        write_video(name, seconds=0.8 + 0.1 * (i % 4), tone=200 + 50 * i)
    return folder
