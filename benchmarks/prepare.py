"""``datasets.prepare`` against calling an ``ffmpeg`` program twice per clip, on the same cores.

    python benchmarks/prepare.py [--clips 240] [--large_clips 48] [--num_workers 2]

Makes 10-s H.264/AAC clips (with B-frames and a keyframe every 250 frames at most, as the usual encoders write
them) of 340x256, AudioSet's usual size, and of 1280x720, and prepares them both ways in turns. The program is
called as single-paper code does: once for 16 kHz mono sound as WAV, once for ten frames as JPEGs of 256
pixels; each call with one thread, as many at a time as there are workers. Ours includes everything up to the
verified index, the start of its processes included. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.prepare.encode import Encoder, EncodeSettings, Work
from datasets.prepare.run import PrepareConfig, prepare
from datasets.prepare.sources import Task
from datasets.shards.manifest import ShardIndex
from home_paths import command_line

SECONDS = 10
FRAME_RATE = 25
SAMPLE_RATE = 44_100
BITS_PER_PIXEL = 2.4  # and second
DISTINCT = 4  # files that are really encoded; the others are copies, which cost a decoder the same


def write_clip(path: Path, size: tuple[int, int], seed: int) -> None:
    """Writes a clip of moving textures with a little noise, and a changing tone.

    Bit rates are those of real clips of these sizes: a good 0.2 Mbit/s at 340x256, 2.2 Mbit/s at 1280x720.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = rng.integers(0, 256, (height // 32 + 16, width // 32 + 16, 3), dtype=np.uint8)
    texture = np.asarray(
        Image.fromarray(coarse).resize((width + 256, height + 256), Image.Resampling.BICUBIC)
    )
    noise = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", FRAME_RATE, options={"preset": "medium"})
        video.bit_rate = round(BITS_PER_PIXEL * width * height)
        video.width, video.height, video.pix_fmt, video.thread_count = width, height, "yuv420p", 1
        audio = container.add_stream("aac", SAMPLE_RATE, layout="stereo")
        for i in range(SECONDS * FRAME_RATE):
            top, left = i // 2, round(100 + 90 * np.sin(i / 20))
            picture = texture[top : top + height, left : left + width].astype(np.int16)
            picture[height // 3 : height // 2, i : i + width // 6] = rng.integers(
                0, 256, 3
            )  # flickers and moves
            picture = (picture + np.roll(noise, 7 * i, axis=1)).clip(0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(video.encode())
        moments = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
        tone = 0.3 * np.sin(2 * np.pi * (300 + 40 * moments) * moments)
        tone = (tone + 0.05 * rng.standard_normal(len(moments))).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


def make_clips(folder: Path, size: tuple[int, int], count: int) -> None:
    folder.mkdir()
    for i in range(count):
        path = folder / f"clip-{i:04d}.mp4"
        if i < DISTINCT:
            write_clip(path, size, i)
        else:
            shutil.copyfile(folder / f"clip-{i % DISTINCT:04d}.mp4", path)


def call_twice(out: Path, path: Path) -> None:
    quiet = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y", "-threads", "1", "-i", str(path)]
    sound = ["-vn", "-ac", "1", "-ar", "16000", str(out / f"{path.stem}.wav")]
    pictures = str(out / f"{path.stem}.%02d.jpg")
    frames = ["-an", "-vf", "fps=1,scale=-2:256", "-q:v", "2", "-threads", "1", pictures]
    subprocess.run([*quiet, *sound], check=True)
    subprocess.run([*quiet, *frames], check=True)


def time_program(clips: Path, out: Path, num_workers: int) -> float:
    out.mkdir()
    started = time.perf_counter()
    with ThreadPoolExecutor(num_workers) as pool:
        list(pool.map(partial(call_twice, out), sorted(clips.iterdir())))
    return time.perf_counter() - started


def time_ours(clips: Path, out: Path, num_workers: int) -> float:
    """Seconds of the whole, from listing the files to the index."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(PrepareConfig(source=str(clips), out=str(out), num_workers=num_workers, shard_megabytes=16))
    return time.perf_counter() - started


def core_seconds(clips: Path) -> float:
    """Seconds of a core that a worker takes for a clip, whatever else the machine does meanwhile."""
    encoder = Encoder(str(clips), EncodeSettings())
    tasks = [Work(Task(path.name, path.stem)) for path in sorted(clips.iterdir())[:DISTINCT]]
    encoder(tasks[0])
    started = time.process_time()
    for task in tasks:
        encoder(task)
    return (time.process_time() - started) / len(tasks)


def program_core_seconds(clips: Path, out: Path) -> float:
    """The same of both calls of the program."""
    out.mkdir()
    paths = sorted(clips.iterdir())[:DISTINCT]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in paths:
        call_twice(out, path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / len(paths)


def compare(size: tuple[int, int], count: int, num_workers: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_clips(folder / "clips", size, count)
        ours, program = [], []
        for i in range(rounds):
            ours.append(time_ours(folder / "clips", folder / f"ours-{i}", num_workers))
            if shutil.which("ffmpeg"):
                program.append(time_program(folder / "clips", folder / f"program-{i}", num_workers))
        assert ShardIndex.load(folder / "ours-0").samples == count
        result: dict[str, object] = {
            "clips": f"{size[0]}x{size[1]}",
            "count": count,
            "megabytes_a_clip": round((folder / "clips" / "clip-0000.mp4").stat().st_size / 1e6, 2),
            "ours_clips_per_second": round(count / min(ours), 2),
            "ours_core_ms": round(1000 * core_seconds(folder / "clips"), 1),
        }
        if program:
            core = program_core_seconds(folder / "clips", folder / "core")
            result["program_clips_per_second"] = round(count / min(program), 2)
            result["program_core_ms"] = round(1000 * core, 1)
            result["core_speedup"] = round(1000 * core / float(str(result["ours_core_ms"])), 2)
            result["speedup"] = round(min(program) / min(ours), 2)
        return result


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--clips", type=int, default=240, help="clips of 340x256")
    parser.add_argument("--large_clips", type=int, default=48, help="clips of 1280x720")
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2, help="repetitions, of which the fastest counts")
    options = parser.parse_args(command_line())
    if not shutil.which("ffmpeg"):
        print("No ffmpeg program on this machine: only ours is measured (apt-get install ffmpeg to compare).")
    results = []
    for size, count in (((340, 256), options.clips), ((1280, 720), options.large_clips)):
        results.append(compare(size, count, options.num_workers, options.rounds))
    columns = list(results[0])
    print("  ".join(columns))
    for result in results:
        print("  ".join(str(result[column]).rjust(len(column)) for column in columns))
    print(json.dumps({"benchmark": "prepare", "num_workers": options.num_workers, "results": results}))


if __name__ == "__main__":
    main()
