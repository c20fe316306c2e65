"""A generated audio-visual world: short MP4s in which what an object looks like determines how it sounds.

In every clip a few objects drift over a textured background and bounce off the walls. One of them sounds (in
hard worlds sometimes a second, quieter one); the others, the distractors, are silent. For a sounding object

=========  ====================================================================================
shape      its timbre (the class: 8 of them; each has a surface pattern as well)
size       its pitch: the larger the lower, 2.7 octaves
hue        the place of a band of hiss in its spectrum, from 2 to 7 kHz round the colour circle
an impact  an onset: the sound swells and decays again to a steady level
=========  ====================================================================================

Shapes have colours of their own, but four of the eight share any colour. Place, background and loudness say nothing.

Which object sounds can be seen in **any single frame**, as it can be for a singing mouth or a spinning fan: a sounding
object glows. Its halo follows the loudness and never quite goes out. Distractors have the same shapes, patterns and
sizes, so a model must connect the glow with what is inside it. The pattern lets a single patch tell what an object is,
so that most of a picture can be removed and the object still known.

One setting, ``difficulty``, goes from 0 (one grey distractor, hardly any noise) to 1 (five distractors as colourful as
the sounding object, noise nearly as loud as it, a busy background, often a second sound).

With ``words`` something is said in each clip, in subtitles beside it, and words, timbre and shape carry a bit each that
the two others do not tell: what fusion is worth can be proved there (`datasets.synthetic.words`).

Each clip is a pure function of the world's settings, its split and its index. Beside the clips lie
``labels.csv`` (path, label, split; with words also the text, and a label for each task) and
``truth-SPLIT.jsonl``: per clip all objects, the sounding one first, with shape, radius, hue, pitch, onset times
and a box for each frame.

    python -m datasets.synthetic OUT --train 1500 --val 250 --test 250
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm

from atomic import TEMPORARY_SUFFIX, check_writable, refuse_links, replacing, write_atomically
from datasets.synthetic.picture import render_frames
from datasets.synthetic.scene import SHAPES, SPLITS, SyntheticConfig, clip_path, describe, words_of
from datasets.synthetic.sound import SAMPLE_RATE, render_sound
from datasets.synthetic.words import TASKS, labels_of, subtitles
from home_paths import command_line
from terminal import show_control_characters


def write_clip(path: Path, frames: np.ndarray, fps: int, sound: np.ndarray) -> None:
    """Writes an MP4 of H.264 and AAC; under a temporary name first.

    Args:
        path: The file.
        frames: (T, H, W, 3) uint8.
        fps: Frames per second.
        sound: (S,) float32 at SAMPLE_RATE.
    """
    with (
        replacing(path) as file,
        av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        x264 = {"preset": "ultrafast", "crf": "20", "threads": "1"}
        video = container.add_stream("libx264", rate=fps, options=x264)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        aac = {"aac_coder": "fast"}
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=64000, options=aac)
        block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux([*audio.encode(block), *audio.encode(None)])
        for t, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def _make_clip(out: Path, config: SyntheticConfig, clip: tuple[str, int]) -> None:
    path = out / clip_path(config, *clip)
    if config.words:
        write_atomically(path.with_suffix(".srt"), subtitles(words_of(config, *clip), config.seconds))
    if not path.exists():
        write_clip(path, render_frames(config, *clip), config.fps, render_sound(config, *clip))


def generate(out: Path, config: SyntheticConfig, num_workers: int = 1) -> None:
    """Writes a world into a folder; clips that are there already are kept, so that it can be interrupted.

    Args:
        out: The folder; made if need be. One process at a time may write to it.
        config: What to generate.
        num_workers: Processes.

    Raises:
        ValueError: The folder holds a world of other settings.
    """
    clips = [(split, index) for split in SPLITS for index in range(getattr(config, split))]
    refuse_links(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, config)
    for folder in {(out / clip_path(config, *clip)).parent for clip in clips}:
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in out.rglob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()
    with tqdm(total=len(clips), desc="generating", unit="clip", disable=None) as progress:
        for _ in _each(partial(_make_clip, out, config), clips, num_workers):
            progress.update()
    for split in SPLITS:
        truth = (json.dumps(describe(config, *clip)) + "\n" for clip in clips if clip[0] == split)
        write_atomically(out / f"truth-{split}.jsonl", "".join(truth))
    rows = [_header(config), *(_label_row(config, *clip) for clip in clips)]
    write_atomically(out / "labels.csv", "".join(f"{','.join(row)}\n" for row in rows))


def _header(config: SyntheticConfig) -> list[str]:
    named = ["text", *(f"label.{task}" for task in TASKS)] if config.words else ["label"]
    return ["path", *named, "split"]


def _label_row(config: SyntheticConfig, split: str, index: int) -> list[str]:
    named = [SHAPES[index % len(SHAPES)]]
    if config.words:
        named = [" ".join(words_of(config, split, index)), *labels_of(index).values()]
    return [clip_path(config, split, index), *named, split]


def _claim(out: Path, config: SyntheticConfig) -> None:
    """Leaves the settings in the folder, or finds the same ones there."""
    note = out / "world.json"
    settings = config.settings()
    if note.exists() and (found := json.loads(note.read_text(encoding="utf-8"))) != settings:
        other = ", ".join(k for k in settings if found.get(k) != settings[k])
        raise ValueError(
            f"{out} holds a world of other settings ({other}); choose another folder or delete it"
        )
    write_atomically(note, json.dumps(settings, indent=2) + "\n")


def _each(function: partial, items: Sequence[tuple[str, int]], num_workers: int) -> Iterator[None]:
    if num_workers <= 1:
        yield from map(function, items)
        return
    with get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap_unordered(function, items, chunksize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic", description="Generates labelled clips."
    )
    parser.add_argument("out", type=Path, help="folder to write")
    for name, default in SyntheticConfig().settings().items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    parser.add_argument(
        "--words", action="store_true", help="words, timbre and shape are independent; see docs/finetune.md"
    )
    parser.add_argument("--num_workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    options = vars(parser.parse_args(command_line(arguments)))
    out, num_workers = options.pop("out"), options.pop("num_workers")
    try:
        check_writable(out)
        generate(out, SyntheticConfig(**options), num_workers)
    except ValueError as error:
        parser.error(str(error))
