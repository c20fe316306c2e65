"""A generated audio-visual world: short MP4s in which what an object looks like determines how it sounds.

In every clip a few objects drift over a textured background and bounce off the walls. One of them sounds (in
hard worlds sometimes a second, quieter one); the others, the distractors, are silent. For a sounding object

=========  ======================================================================================
shape      its timbre (the class: 8 of them)
size       its pitch: the larger the lower, 2.7 octaves
hue        the place of a band of hiss in its spectrum: from red at 2 kHz to violet at 7 kHz
an impact  an onset: the sound swells and decays again to a steady level
=========  ======================================================================================

Which object sounds can be seen in **any single frame**, as it can be for a singing mouth or a spinning fan:
a sounding object glows. Its halo follows the loudness and never quite goes out. Distractors have the same
shapes and sizes, so a model must connect the glow with the shape inside it. Where an object is, is not heard.

About 8 shapes x 5 sizes x 5 hues = 200 combinations can be told apart by eye and ear. One setting,
``difficulty``, goes from 0 (one grey distractor, hardly any noise) to 1 (five distractors as colourful as the
sounding object, noise nearly as loud as it, a busy background, often a second sound).

Each clip is a pure function of the world's settings, its split and its index. Beside the clips lie
``labels.csv`` (path, label, split) and ``truth-SPLIT.jsonl``: per clip all objects, the sounding one first,
with shape, radius, hue, pitch, onset times and a box for each frame.

    python -m datasets.synthetic OUT --train 1500 --val 250 --test 250
"""

from __future__ import annotations

import argparse
import colorsys
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

SPLITS = ("train", "val", "test")
SHAPES = ("disc", "ring", "square", "triangle", "star", "plus", "bars", "hourglass")
SAMPLE_RATE = 16000

RADIUS = (0.11, 0.23)  # of the picture's side: the smallest is still wider than a 16-pixel patch at 96 pixels
PITCH_HZ = (1400.0, 220.0)  # of the smallest and the largest object
HISS_HZ = (2000.0, 7000.0)  # of hue 0 (red) and hue 1 (violet)
FLOOR = 0.35  # of the steady sound and glow, against an impact's 1
DECAY_SECONDS = 0.18
HALO = 1.7  # radii


@dataclass(frozen=True)
class SyntheticConfig:
    """A generated world.

    Attributes:
        train: Number of clips of the training split; ``val`` and ``test`` likewise.
        seed: Another seed is another world of the same kind. Splits of one world share no clip.
        seconds: Length of each clip.
        size: Height and width of the picture in pixels (even).
        fps: Frames per second.
        difficulty: From 0 to 1: distractors, their colours, noise, background, second sounds.
    """

    train: int = 1500
    val: int = 250
    test: int = 250
    seed: int = 0
    seconds: float = 3.0
    size: int = 128
    fps: int = 10
    difficulty: float = 0.3

    def __post_init__(self):
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty must be from 0 to 1, got {self.difficulty}")
        if self.size < 32 or self.size % 2:
            raise ValueError(f"size must be even and at least 32 pixels, got {self.size}")
        if self.fps < 1 or self.num_frames < 1:
            raise ValueError(f"{self.seconds} seconds at {self.fps} frames per second hold no frame")
        if self.seed < 0 or min(self.train, self.val, self.test) < 0:
            raise ValueError("the seed and the numbers of clips must not be negative")

    @property
    def num_frames(self) -> int:
        """Frames in each clip."""
        return round(self.seconds * self.fps)


class Thing(NamedTuple):
    """One object of a scene, by what determines its looks and its sound.

    Attributes:
        shape: One of SHAPES.
        loudness: 0 for a distractor, 1 for the clip's sounding object, between for a second one.
        radius: In pixels.
        hue: From 0 (red) to 1 (violet).
        saturation: Of its colour, from 0 (grey) to 1.
        origin: (2,) x and y of the centre at time 0, in pixels from the nearest place it can be.
        velocity: (2,) in pixels per second.
        span: Width in pixels of the square in which the centre moves.
    """

    shape: str
    loudness: float
    radius: float
    hue: float
    saturation: float
    origin: np.ndarray
    velocity: np.ndarray
    span: float

    @property
    def relative_size(self) -> float:
        """0 for the smallest objects to 1 for the largest."""
        side = self.span + 2 * self.radius
        return (self.radius / side - RADIUS[0]) / (RADIUS[1] - RADIUS[0])

    @property
    def pitch_hz(self) -> float:
        """The fundamental of its sound."""
        return PITCH_HZ[0] * (PITCH_HZ[1] / PITCH_HZ[0]) ** self.relative_size

    @property
    def hiss_hz(self) -> float:
        """The middle of its band of hiss."""
        return HISS_HZ[0] * (HISS_HZ[1] / HISS_HZ[0]) ** self.hue

    def centers(self, times: np.ndarray) -> np.ndarray:
        """(T, 2) x and y in pixels at the given times in seconds: straight lines, folded at the walls."""
        path = (self.origin + times[:, None] * self.velocity) % (2 * self.span)
        return self.radius + np.minimum(path, 2 * self.span - path)

    def impacts(self, seconds: float) -> np.ndarray:
        """Times of the impacts on a wall up to ``seconds``, ascending."""
        hits = []
        for start, speed in zip(self.origin, self.velocity, strict=True):
            ends = sorted((start, start + speed * seconds))
            walls = np.arange(np.ceil(ends[0] / self.span), np.floor(ends[1] / self.span) + 1) * self.span
            hits.append((walls - start) / speed)
        return np.unique(np.concatenate(hits))

    def envelope(self, times: np.ndarray, seconds: float) -> np.ndarray:
        """Loudness, and strength of the glow, at the given times: FLOOR, and up to 1 just after an impact."""
        since = times[:, None] - self.impacts(seconds)[None]
        swell = np.where(since >= 0, np.exp(-np.maximum(since, 0) / DECAY_SECONDS), 0).sum(axis=1)
        return self.loudness * (FLOOR + (1 - FLOOR) * np.minimum(swell, 1))


def make_scene(config: SyntheticConfig, split: str, index: int) -> list[Thing]:
    """The objects of a clip, the sounding one last (it is drawn last, in front)."""
    rng = _generator(config, split, index, "scene")
    hard = config.difficulty
    main = _draw_thing(config, rng, SHAPES[index % len(SHAPES)], loudness=1.0, saturation=0.9)
    scene = [main]
    if rng.random() < hard - 0.5:
        others = [shape for shape in SHAPES if shape != main.shape]
        scene.insert(0, _draw_thing(config, rng, str(rng.choice(others)), loudness=0.5, saturation=0.9))
    for _ in range(rng.integers(1, 2 + round(4 * hard))):
        scene.insert(
            0, _draw_thing(config, rng, str(rng.choice(SHAPES)), loudness=0.0, saturation=0.9 * hard)
        )
    return scene


def _generator(config: SyntheticConfig, split: str, index: int, purpose: str) -> np.random.Generator:
    purposes = ("scene", "picture", "sound")
    return np.random.default_rng([config.seed, SPLITS.index(split), index, purposes.index(purpose)])


def _draw_thing(
    config: SyntheticConfig, rng: np.random.Generator, shape: str, loudness: float, saturation: float
) -> Thing:
    radius = config.size * rng.uniform(*RADIUS)
    span = config.size - 2 * radius
    speed = config.size * rng.uniform(0.3, 0.9, 2) * rng.choice([-1, 1], 2)
    return Thing(shape, loudness, radius, rng.random(), saturation, rng.uniform(0, 2 * span, 2), speed, span)


def render_frames(config: SyntheticConfig, split: str, index: int) -> np.ndarray:
    """(T, H, W, 3) uint8 pictures of a clip."""
    rng = _generator(config, split, index, "picture")
    canvas = np.repeat(_background(config, rng)[None], config.num_frames, axis=0)
    times = np.arange(config.num_frames) / config.fps
    for thing in make_scene(config, split, index):
        _paint(canvas, thing, thing.centers(times), thing.envelope(times, config.seconds))
    return canvas


def _background(config: SyntheticConfig, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: soft coloured texture of two scales, the busier the harder."""
    contrast = 0.1 + 0.3 * config.difficulty
    picture = np.full((config.size, config.size, 3), rng.uniform(0.15, 0.4), np.float32)
    for cells, share in ((4, 0.6), (16, 0.4)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        fine = np.asarray(coarse.resize((config.size, config.size), Image.Resampling.BICUBIC), np.float32)
        picture += contrast * share * (fine / 255 - 0.5)
    return (picture.clip(0, 1) * 255).astype(np.uint8)


def _paint(canvas: np.ndarray, thing: Thing, centers: np.ndarray, glow: np.ndarray) -> None:
    """Draws an object, with its halo if it sounds, in every frame, in a window around its place."""
    reach = int(np.ceil(thing.radius * (HALO if thing.loudness else 1.05))) + 1
    corners = np.floor(centers).astype(int) - reach
    axis = np.arange(2 * reach + 2, dtype=np.float32)
    local = (axis[None] - (centers - corners).T[:, :, None]) / thing.radius  # (x and y, frame, pixel)
    u, v = local[0][:, None, :].astype(np.float32), local[1][:, :, None].astype(np.float32)
    alpha = (_inside(thing.shape, u, v) * thing.radius + 0.5).clip(0, 1)[..., None]
    distance = np.maximum(np.sqrt(u * u + v * v) - 0.7, 0)
    halo = (0.85 * glow[:, None, None] * np.exp(-((distance / 0.4) ** 2)))[..., None].astype(np.float32)
    value = 0.95 if thing.loudness else 0.65
    color = 255 * np.array(colorsys.hsv_to_rgb(0.8 * thing.hue, thing.saturation, value), np.float32)
    side = canvas.shape[1]
    for t, (left, top) in enumerate(corners):
        x, y = (
            slice(max(left, 0), min(left + len(axis), side)),
            slice(max(top, 0), min(top + len(axis), side)),
        )
        inner = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
        under = canvas[t, y, x].astype(np.float32)
        if thing.loudness:
            under += halo[t][inner] * (255 - under)
        canvas[t, y, x] = under + alpha[t][inner] * (color - under)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far a point lies inside the shape (negative: outside), all in radii; ``v`` points down."""
    x, y, r = np.abs(u), np.abs(v), np.sqrt(u * u + v * v)
    match shape:
        case "disc":
            return 1 - r
        case "ring":
            return 0.22 - np.abs(r - 0.78)
        case "square":
            return 0.85 - np.maximum(x, y)
        case "triangle":
            return 0.5 - np.maximum(v, 0.866 * x - 0.5 * v)
        case "star":
            turn = np.arctan2(u, -v) * (5 / (2 * np.pi))
            return 0.35 + 0.65 * np.abs(2 * (turn % 1) - 1) ** 1.5 - r
        case "plus":
            return np.maximum(np.minimum(0.3 - x, 1 - y), np.minimum(1 - x, 0.3 - y))
        case "bars":
            stripe = np.abs((v / 0.68 + 0.5) % 1 - 0.5) * 0.68
            return np.minimum(np.minimum(0.9 - x, 0.88 - y), 0.19 - stripe)
        case "hourglass":
            return np.minimum(0.9 - y, 0.7 * (y - x) + 0.1)
    raise AssertionError(f"no such shape: {shape}")


def render_sound(config: SyntheticConfig, split: str, index: int) -> np.ndarray:
    """(S,) float32 sound of a clip at SAMPLE_RATE, within [-1, 1]."""
    rng = _generator(config, split, index, "sound")
    num_samples = round(config.seconds * SAMPLE_RATE)
    times = np.arange(num_samples) / SAMPLE_RATE
    sound = np.zeros(num_samples)
    coarse = np.linspace(0, config.seconds, round(config.seconds * 1000) + 1)
    for thing in make_scene(config, split, index):
        if thing.loudness:
            envelope = np.interp(times, coarse, thing.envelope(coarse, config.seconds))
            hiss = _noise_band(rng, num_samples, thing.hiss_hz, 0.06 * thing.hiss_hz)
            sound += envelope * (_tone(thing.shape, thing.pitch_hz, times, rng) + 0.5 * hiss)
    loudness = np.sqrt(np.mean(sound**2))
    noise_db = -30 + 26 * config.difficulty + rng.uniform(-3, 3)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    tilt = np.linspace(0.02, 1, len(spectrum)) ** -rng.uniform(0, 0.5)
    noise = np.fft.irfft(spectrum * tilt, num_samples)
    sound += noise * (loudness * 10 ** (noise_db / 20) / np.std(noise))
    gain = 10 ** (-rng.uniform(0, 12) / 20)  # how loud a clip is says nothing
    return (0.9 * gain * sound / np.abs(sound).max()).astype(np.float32)


def _tone(shape: str, pitch: float, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S,) the steady tone of a shape at a pitch in Hz, of mean square about 1."""
    phase = 2 * np.pi * (pitch * times + rng.random())
    slow = times + rng.random()
    match shape:
        case "disc":  # nearly pure
            return _harmonics(phase, pitch, [1.0, 0.1])
        case "ring":  # a bell: partials that are no harmonics
            partials = [np.sin(ratio * phase) for ratio in (1, 1.51, 2.76, 4.07) if ratio * pitch < 7800]
            return np.sum(partials, axis=0) / 1.4
        case "square":  # odd harmonics
            return _harmonics(phase, pitch, [1 / h if h % 2 else 0.0 for h in range(1, 16)])
        case "triangle":  # all harmonics
            return _harmonics(phase, pitch, [h**-0.5 for h in range(1, 9)])
        case "star":  # trembling
            return _harmonics(phase, pitch, [1, 0.7, 0.5]) * (1 - 0.95 * np.cos(2 * np.pi * 14 * slow))
        case "plus":  # breath: a band of noise at the pitch
            return _noise_band(rng, len(times), pitch, 0.12 * pitch)
        case "bars":  # cut into pieces
            return _harmonics(phase, pitch, [1, 0, 0.6, 0, 0.4]) * (1.4 * ((5 * slow) % 1 < 0.5))
        case "hourglass":  # wailing up and down
            sweep = 0.25 * pitch / 2.5 * np.sin(2 * np.pi * 2.5 * slow)  # the pitch changes by a quarter
            return _harmonics(phase + sweep, pitch, [1.0, 0.4, 0.2])
    raise AssertionError(f"no such shape: {shape}")


def _harmonics(phase: np.ndarray, pitch: float, amplitudes: Sequence[float]) -> np.ndarray:
    """A sum of harmonics below the Nyquist frequency, of mean square 1."""
    cycle = 2 * np.pi * np.arange(2048) / 2048
    kept = [(h, a) for h, a in enumerate(amplitudes, start=1) if 1.3 * h * pitch < SAMPLE_RATE / 2 and a]
    table = sum(a * np.sin(h * cycle) for h, a in kept) / np.sqrt(sum(a * a for _, a in kept) / 2)
    return table[(phase * (2048 / (2 * np.pi))).astype(np.int64) % 2048]


def _noise_band(rng: np.random.Generator, num_samples: int, center: float, width: float) -> np.ndarray:
    """Noise of mean square 1 in a band of the given standard deviation, both in Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * ((hertz - center) / width) ** 2), num_samples)
    return noise / np.std(noise)


def describe(config: SyntheticConfig, split: str, index: int) -> dict:
    """The ground truth of a clip, as it goes into ``truth-SPLIT.jsonl``."""
    scene = make_scene(config, split, index)
    times = np.arange(config.num_frames) / config.fps
    return {
        "id": f"{split}-{index:06d}",
        "path": clip_path(split, index),
        "label": scene[-1].shape,
        "fps": config.fps,
        "objects": [_describe_thing(thing, times, config) for thing in reversed(scene)],
    }


def _describe_thing(thing: Thing, times: np.ndarray, config: SyntheticConfig) -> dict:
    centers = thing.centers(times)
    boxes = np.concatenate([centers - thing.radius, centers + thing.radius], axis=1).round(1)
    sound = {
        "pitch_hz": round(thing.pitch_hz, 2),
        "hiss_hz": round(thing.hiss_hz, 2),
        "onsets": thing.impacts(config.seconds).round(4).tolist(),
    }
    return {
        "shape": thing.shape,
        "loudness": thing.loudness,
        "radius": round(thing.radius, 2),
        "hue": round(thing.hue, 4),
        "boxes": boxes.tolist(),  # left, top, right, bottom in pixels, for each frame
        **(sound if thing.loudness else {}),
    }


def clip_path(split: str, index: int) -> str:
    """Where a clip lies in the world's folder: SPLIT/CLASS/ID.mp4."""
    return f"{split}/{SHAPES[index % len(SHAPES)]}/{split}-{index:06d}.mp4"


def write_clip(path: Path, frames: np.ndarray, fps: int, sound: np.ndarray) -> None:
    """Writes an MP4 of H.264 and AAC; under a temporary name first.

    Args:
        path: The file.
        frames: (T, H, W, 3) uint8.
        fps: Frames per second.
        sound: (S,) float32 at SAMPLE_RATE.
    """
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
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
    os.replace(temporary, path)


def _make_clip(out: Path, config: SyntheticConfig, clip: tuple[str, int]) -> None:
    path = out / clip_path(*clip)
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
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, config)
    for folder in {(out / clip_path(*clip)).parent for clip in clips}:
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in out.rglob("*.part"):
        leftover.unlink()
    with tqdm(total=len(clips), desc="generating", unit="clip", disable=None) as progress:
        for _ in _each(partial(_make_clip, out, config), clips, num_workers):
            progress.update()
    for split in SPLITS:
        truth = (json.dumps(describe(config, *clip)) + "\n" for clip in clips if clip[0] == split)
        _write_text(out / f"truth-{split}.jsonl", "".join(truth))
    rows = [(clip_path(*clip), SHAPES[clip[1] % len(SHAPES)], clip[0]) for clip in clips]
    _write_text(
        out / "labels.csv", "".join(f"{','.join(row)}\n" for row in [("path", "label", "split"), *rows])
    )


def _claim(out: Path, config: SyntheticConfig) -> None:
    """Leaves the settings in the folder, or finds the same ones there."""
    note = out / "world.json"
    settings = asdict(config)
    if note.exists() and (found := json.loads(note.read_text())) != settings:
        other = ", ".join(k for k in settings if found.get(k) != settings[k])
        raise ValueError(
            f"{out} holds a world of other settings ({other}); choose another folder or delete it"
        )
    _write_text(note, json.dumps(settings, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def _each(function: partial, items: Sequence[tuple[str, int]], num_workers: int) -> Iterator[None]:
    if num_workers <= 1:
        yield from map(function, items)
        return
    with get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap_unordered(function, items, chunksize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic", description="Generates labelled clips."
    )
    parser.add_argument("out", type=Path, help="folder to write")
    for name, default in asdict(SyntheticConfig()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    options = vars(parser.parse_args(arguments))
    out, num_workers = options.pop("out"), options.pop("workers")
    try:
        generate(out, SyntheticConfig(**options), num_workers)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
