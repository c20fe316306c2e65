"""Small sets of clips with sound, frames, text and labels of two tasks, some of which lack something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.shards import encode_flac, encode_jpeg, make_picture, make_waveform

from datasets.index import build_table
from datasets.shards.manifest import FbankStats, Label, ShardIndex
from datasets.shards.tar import SHARD_PATTERN, Sample, ShardWriter, make_key

EMOTIONS, SENTIMENTS = ("anger", "joy", "neutral"), ("negative", "positive")


def make_spoken(number: int, lacking: bool = True) -> Sample:
    """Clip i of emotion i % 3 and sentiment i % 2; of five in a row one has no text, one no frames, one no sound."""
    name, place = f"clip-{number:05d}", number % 5 if lacking else 0
    seconds = 0.25 + 0.05 * (number % 3)
    labels = [f"emotion:{EMOTIONS[number % 3]}", f"sentiment:{SENTIMENTS[number % 2]}"]
    metadata = {"id": name, "labels": labels[: 1 if place == 4 else 2], "start": 0.0, "duration": seconds}
    members = []
    if place != 1:
        members.append(("txt", f"we saw {'the film ' * (number % 4)}again".encode()))
    if place != 3:
        members.append(("flac", encode_flac(make_waveform(number, seconds))))
    if place != 2:
        members += [(f"{i:02d}.jpg", encode_jpeg(make_picture(number, i, (40, 32)))) for i in range(4)]
        metadata["frame_times"] = [0.0, 0.1, 0.2, 0.3]
    return Sample(make_key(name), {**metadata, "source": f"{name}.mp4"}, members)


def make_spoken_shards(folder: Path, num_clips: int, lacking: bool = True) -> Path:
    """Writes a set in shards of 5 clips, with index and table, and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, num_clips, 5):
        with ShardWriter(folder / SHARD_PATTERN.format(len(shards))) as writer:
            for number in range(first, min(first + 5, num_clips)):
                writer.write(make_spoken(number, lacking))
        shards.append(writer.close())
    names = [*(f"emotion:{name}" for name in EMOTIONS), *(f"sentiment:{name}" for name in SENTIMENTS)]
    counts = np.full(len(names), num_clips // 3)
    index = ShardIndex(
        shards=tuple(shards),
        labels=tuple(Label(name, None, int(count)) for name, count in zip(names, counts, strict=True)),
        fbank=FbankStats(-5.0, 4.5, num_clips),
        settings={"generated": True},
        duration_seconds=0.3 * num_clips,
    )
    index.save(folder)
    build_table(folder, index)
    return folder
