"""How the clips that a model was trained on were made from files: what it is shown later is made alike."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from atomic import write_atomically
from datasets.shards.manifest import ShardIndex

_NAME = "preparation.json"


@dataclass(frozen=True)
class Preparation:
    """What of ``datasets.prepare``'s settings a model sees; the defaults are its own.

    Attributes:
        num_frames: Frames of a clip.
        shorter_side: Of the frames, in pixels.
        first_channel_only: Whether the sound is the first channel, not the mean of all.
        jpeg_quality: Of the frames.
        clip_seconds: Length of the clips into which long files were cut; None where they were not.
        partial: Whether clips whose text is known were kept where their file could not be read.
    """

    num_frames: int = 10
    shorter_side: int = 256
    first_channel_only: bool = False
    jpeg_quality: int = 90
    clip_seconds: float | None = 10.0
    partial: bool = False

    def __post_init__(self) -> None:
        for name in ("num_frames", "shorter_side", "jpeg_quality"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}: it must be a number of at least 1")
        seconds = self.clip_seconds
        if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
            raise ValueError(f"clip_seconds is {seconds!r}: it must be above 0, or null")


def preparation_of(index: ShardIndex) -> Preparation:
    """How a set's clips were made; of one that ``datasets.prepare`` did not make, its defaults are supposed."""
    stored = index.settings
    settings: dict[str, Any] = {
        **stored,
        **(stored["media"] if isinstance(stored.get("media"), dict) else {}),
    }
    return _read(settings) if "media" in stored else Preparation()


def keep_preparation(run: Path, index: ShardIndex) -> None:
    """Notes in a run's folder how its training clips were made."""
    write_atomically(run / _NAME, json.dumps(asdict(preparation_of(index)), indent=1) + "\n")


def kept_preparation(run: Path) -> Preparation:
    """What `keep_preparation` noted; the defaults for a run that has no note.

    Raises:
        ValueError: The note is damaged.
    """
    path = run / _NAME
    if not path.is_file():
        return Preparation()
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        return _read(found)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it, or remove it to take the defaults"
        ) from error


def _read(settings: dict[str, Any]) -> Preparation:
    return Preparation(**{f.name: settings[f.name] for f in fields(Preparation) if f.name in settings})
