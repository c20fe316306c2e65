"""Small sets of shards with generated sound and pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from datasets.index import build_table
from datasets.shards.manifest import FbankStats, Label, ShardIndex
from datasets.shards.tar import SHARD_PATTERN, Sample, ShardWriter, make_key

SAMPLE_RATE = 16_000


def make_waveform(number: int, seconds: float) -> np.ndarray:
    """(S,) int16: a tone of its own for each clip, with some noise."""
    rng = np.random.default_rng(number)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * (200 + 37 * (number % 97)) * time) + 0.1 * rng.standard_normal(len(time))
    return (8000 * tone).clip(-32768, 32767).astype(np.int16)


def make_picture(number: int, frame: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: a smooth picture whose mean colour tells clip and frame apart."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    red = np.full((height, width), (number * 37) % 256)
    green = np.full((height, width), (frame * 23) % 256)
    blue = 255 * (x + y) // max(width + height - 2, 1)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def encode_flac(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode_jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_sample(
    number: int,
    *,
    num_classes: int = 3,
    seconds: float = 1.0,
    size: tuple[int, int] = (48, 32),
    frames: int = 2,
) -> Sample:
    """Clip ``number`` of class ``number % num_classes``: a tone and ``frames`` pictures."""
    identifier = f"clip-{number:05d}"
    metadata = {
        "id": identifier,
        "labels": [f"class {number % num_classes}"] if num_classes else [],
        "start": 0.0,
        "duration": seconds,
        "frame_times": [(i + 0.5) * seconds / frames for i in range(frames)],
        "source": f"{identifier}.mp4",
    }
    members = [("flac", encode_flac(make_waveform(number, seconds)))]
    members += [(f"{i:02d}.jpg", encode_jpeg(make_picture(number, i, size))) for i in range(frames)]
    return Sample(make_key(identifier), metadata, members)


def make_shards(
    folder: Path,
    num_clips: int,
    clips_per_shard: int,
    *,
    num_classes: int = 3,
    seconds: float = 1.0,
    size: tuple[int, int] = (48, 32),
    frames: int = 2,
) -> Path:
    """Writes a set of shards with index and table into ``folder`` (made if missing), and returns it.

    Clip i is ``make_sample(i)``: its sound is ``make_waveform(i, seconds)``, its frame f
    ``make_picture(i, f, size)``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, num_clips, clips_per_shard):
        with ShardWriter(folder / SHARD_PATTERN.format(len(shards))) as writer:
            for number in range(first, min(first + clips_per_shard, num_clips)):
                writer.write(
                    make_sample(number, num_classes=num_classes, seconds=seconds, size=size, frames=frames)
                )
        shards.append(writer.close())
    counts = np.bincount(np.arange(num_clips) % max(num_classes, 1), minlength=num_classes)
    index = ShardIndex(
        shards=tuple(shards),
        labels=tuple(Label(f"class {i}", None, int(counts[i])) for i in range(num_classes)),
        fbank=FbankStats(-5.0, 4.5, num_clips),
        settings={"generated": True},
        duration_seconds=num_clips * seconds,
    )
    index.save(folder)
    build_table(folder, index)
    return folder
