"""What a reader process costs: milliseconds of one core per clip, on generated 10-s clips.

    python -m benchmarks.loader [--clips 64] [--frames 1 8 10 16] [--shorter_side 256 224] [--sound flac wav]

Prints a table, and as its last line the same as JSON. The generated clips have the size of AudioSet's: 10 s of 16 kHz
sound with the spectrum and dynamics of recordings, frames of 340×256 (or with a shorter side of 224) as JPEG of quality
90 with textures and edges. Each number of ``--frames`` is timed with sound and without: one frame at random, else that
many evenly spaced of the 16 (or more) stored. With several shorter sides or forms of sound, each kind of set is timed
in the same run, and the differences of their pictures from pictures never compressed are printed. ``--shards FOLDER``
times a set that is there.

A clip is timed from its ticket to its place in a batch: reading, decoding, resizing, collating. Processor time is
counted, of this process and of the child in which readers decode; it still grows when others share the core.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image

from datasets.batch import ReadFailure, collate
from datasets.decode import decode_frame, resize_and_crop
from datasets.index import build_table
from datasets.loading.frames import EvenFrames, FrameChoice, random_frame
from datasets.loading.loader import NUM_SAMPLES
from datasets.loading.plan import SamplePlan, WindowShuffle
from datasets.loading.reader import ClipReader
from datasets.shards.manifest import ShardIndex
from datasets.shards.tar import SHARD_PATTERN, Sample, ShardWriter, make_key
from home_paths import command_line

SAMPLE_RATE = 16_000
SECONDS = 10
FRAME_SIZE = (340, 256)


def sound(rng: np.random.Generator) -> np.ndarray:
    """(S,) int16: harmonic notes with decaying envelopes over noise that falls by 6 dB an octave."""
    length = SECONDS * SAMPLE_RATE
    spectrum = rng.standard_normal(length // 2 + 1) + 1j * rng.standard_normal(length // 2 + 1)
    noise = np.fft.irfft(spectrum / np.maximum(np.arange(length // 2 + 1), 200), length)
    mixed = 0.05 * noise / noise.std()
    for onset in rng.integers(0, length - SAMPLE_RATE, 40):
        time_axis = np.arange(rng.integers(SAMPLE_RATE // 4, SAMPLE_RATE)) / SAMPLE_RATE
        pitch = rng.uniform(80, 900)
        partials = sum(np.sin(2 * np.pi * pitch * k * time_axis) / k**1.5 for k in range(1, 9))
        mixed[onset : onset + len(time_axis)] += 0.2 * partials * np.exp(-time_axis * rng.uniform(2, 9))
    return (mixed / np.abs(mixed).max() * 30_000).astype(np.int16)


def picture(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: soft shading, shapes with edges, and texture like that of a camera's picture."""
    width, height = FRAME_SIZE
    canvas = np.zeros((height, width, 3))
    for cell, strength in ((64, 60), (16, 25), (4, 12), (2, 6)):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2, 3))
        grown = [
            Image.fromarray(coarse[..., c].astype(np.float32)).resize(FRAME_SIZE, Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        canvas += strength * np.stack([np.asarray(channel) for channel in grown], axis=-1)
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(6):
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(10, 60)
        canvas[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] += rng.uniform(-70, 70, 3)
    return (canvas + 120).clip(0, 255).astype(np.uint8)


def make_clips(folder: Path, clips: int, num_frames: int, kind: Kind) -> None:
    """Writes the generated set: shards of 32 clips of ``num_frames`` frames, index and table."""
    rng = np.random.default_rng(0)
    sounds = [kind.encode_sound(sound(rng)) for _ in range(min(clips, 8))]
    frames = [kind.encode_picture(picture(rng)) for _ in range(min(clips, 8) * 2)]
    shards = []
    for first in range(0, clips, 32):
        with ShardWriter(folder / SHARD_PATTERN.format(len(shards))) as writer:
            for number in range(first, min(first + 32, clips)):
                pictures = [(f"{i:02d}.jpg", frames[(number + i) % len(frames)]) for i in range(num_frames)]
                metadata = {"id": f"clip{number}", "duration": float(SECONDS)}
                writer.write(
                    Sample(
                        make_key(f"clip{number}"),
                        metadata,
                        [(kind.sound, sounds[number % len(sounds)]), *pictures],
                    )
                )
        shards.append(writer.close())
    index = ShardIndex(tuple(shards))
    index.save(folder)
    build_table(folder, index)


def processor_seconds() -> float:
    """Processor time of this process and of its children that are alive."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    clocks = [(~int(child) << 3) | 2 for child in children]  # as clock_getcpuclockid(3) makes them
    return time.process_time() + sum(map(time.clock_gettime, clocks))


def picture_difference(kind: Kind, image_size: int = 224) -> tuple[float, float]:
    """Mean and 99th percentile of the grey levels by which pictures as trained on differ from uncompressed ones."""
    rng = np.random.default_rng(0)
    differences = []
    for pixels in (picture(rng) for _ in range(16)):
        ideal = resize_and_crop(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), image_size)
        found = decode_frame(bytearray(kind.encode_picture(pixels)), image_size)
        differences.append((found.float() - ideal.float()).abs())
    every = torch.stack(differences)
    return float(every.mean()), float(np.percentile(every.numpy(), 99))


def time_reader(
    folder: Path, *, audio: bool, choose_frames: FrameChoice | None, batch_size: int = 32, rounds: int = 5
) -> float:
    """Milliseconds of processor time per clip: the median over rounds, the first of which is not counted."""
    reader = ClipReader(folder, audio=audio, choose_frames=choose_frames)
    order = WindowShuffle(reader.table.shard_sizes, seed=0)
    plan = SamplePlan(order, 0, min(batch_size, len(reader)))
    batches = max(1, len(reader) // plan.global_batch_size)
    times = []
    for epoch in range(rounds + 1):
        tickets = [plan.global_batch(epoch * batches + i) for i in range(batches)]
        begin = processor_seconds()
        for batch in tickets:
            clips = reader.__getitems__(batch)
            assert not any(isinstance(clip, ReadFailure) or clip.failures for clip in clips)
            collate(clips, NUM_SAMPLES, reader.table.num_classes)
        times.append((processor_seconds() - begin) * 1000 / (batches * plan.global_batch_size))
    return statistics.median(times[1:])


class Kind(NamedTuple):
    """How a set's clips are stored."""

    shorter_side: int
    sound: str

    def encode_sound(self, waveform: np.ndarray) -> bytes:
        """A FLAC file as fast to decode as can be, or a WAV file."""
        buffer = io.BytesIO()
        level = 0.0 if self.sound == "flac" else None
        soundfile.write(
            buffer, waveform, SAMPLE_RATE, "PCM_16", format=self.sound.upper(), compression_level=level
        )
        return buffer.getvalue()

    def encode_picture(self, pixels: np.ndarray) -> bytes:
        """A JPEG of the picture, made smaller where the shorter side is."""
        image, side = Image.fromarray(pixels), min(pixels.shape[:2])
        if side != self.shorter_side:
            size = [round(length * self.shorter_side / side) for length in image.size]
            image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def cases(frames: Sequence[int]) -> dict[str, tuple[bool, FrameChoice | None]]:
    """What is timed: (with sound, frames) by name."""
    found: dict[str, tuple[bool, FrameChoice | None]] = {"sound": (True, None)}
    for count in frames:
        choice = random_frame if count == 1 else EvenFrames(count)
        name = "1 frame" if count == 1 else f"{count} frames"
        found |= {name: (False, choice), f"sound and {name}": (True, choice)}
    return found


def time_set(folder: Path, frames: Sequence[int], rounds: int) -> dict[str, float]:
    """Prints and returns the milliseconds of each case."""
    index, result = ShardIndex.load(folder), {}
    print(f"{index.samples} clips, {index.bytes / index.samples / 1000:.0f} kB each")
    for name, (audio, choose_frames) in cases(frames).items():
        result[name] = time_reader(folder, audio=audio, choose_frames=choose_frames, rounds=rounds)
        print(f"  {name:24s}{result[name]:8.2f} ms a clip{1000 / result[name]:10.0f} clips/s on one core")
    return {name: round(value, 4) for name, value in result.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description="Time the reader.")
    parser.add_argument("--clips", type=int, default=64, help="clips to generate")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 8, 10, 16], help="numbers of frames")
    parser.add_argument("--shorter_side", type=int, nargs="+", default=[256], help="of the frames stored")
    parser.add_argument(
        "--sound", nargs="+", default=["flac"], choices=["flac", "wav"], help="as it is stored"
    )
    parser.add_argument(
        "--shards", type=Path, default=None, help="time a set that is there in place of generated ones"
    )
    parser.add_argument("--rounds", type=int, default=5, help="passes over the clips to time")
    options = parser.parse_args(command_line(arguments))
    torch.set_num_threads(1)
    summary: dict[str, dict[str, float]] = {}
    if options.shards is not None:
        summary[str(options.shards)] = time_set(options.shards, options.frames, options.rounds)
    else:
        for kind in (Kind(side, sound) for side in options.shorter_side for sound in options.sound):
            mean, most = picture_difference(kind)
            print(
                f"{kind.sound}, shorter side {kind.shorter_side}: pictures differ by {mean:.2f} (99 %: {most:.0f})"
            )
            with tempfile.TemporaryDirectory() as name:
                make_clips(Path(name), options.clips, max(16, *options.frames), kind)
                summary[f"{kind.sound} {kind.shorter_side}"] = time_set(
                    Path(name), options.frames, options.rounds
                )
    print(
        json.dumps(
            {"benchmark": "loader", "ms": summary, "cpu": platform.processor(), "cores": os.cpu_count()}
        )
    )


if __name__ == "__main__":
    main()
