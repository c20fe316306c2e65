"""What is in a generated clip: its objects, how they move, what determines their looks and their sound."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from datasets.synthetic.words import bits_of, labels_of, utterance

SPLITS = ("train", "val", "test")
SHAPES = ("disc", "ring", "square", "triangle", "star", "plus", "bars", "hourglass")
BIT_SHAPES, BIT_TIMBRES = (
    ("disc", "bars"),
    ("triangle", "plus"),
)  # in a world with words: plain or striped, tone or breath

RADIUS = (0.2, 0.38)  # of the picture's side: the smallest covers five 16-pixel patches at 96 pixels
PITCH_HZ = (1400.0, 220.0)  # of the smallest and the largest object
HISS_HZ = (2000.0, 7000.0)  # of the colour circle's beginning and end
HUE_SPREAD = 2.0  # of a shape's colours, in steps from one shape's to the next: four of eight have any colour
FLOOR = 0.35  # of the steady sound and glow, against an impact's 1
DECAY_SECONDS = 0.18


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
        words: Something is said in every clip, and words, timbre and shape are independent of each other; see
            `datasets.synthetic.words`.
    """

    train: int = 1500
    val: int = 250
    test: int = 250
    seed: int = 0
    seconds: float = 3.0
    size: int = 128
    fps: int = 10
    difficulty: float = 0.3
    words: bool = False

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

    def settings(self) -> dict[str, Any]:
        """What is kept in the world's folder: worlds without words are as they were before there were any."""
        return {name: value for name, value in asdict(self).items() if name != "words" or value}


class Thing(NamedTuple):
    """One object of a scene, by what determines its looks and its sound.

    Attributes:
        shape: One of SHAPES.
        timbre: The shape whose timbre it has.
        loudness: 0 for a distractor, 1 for the clip's sounding object, between for a second one.
        radius: In pixels.
        hue: On the colour circle, from 0 to 1 (both red).
        saturation: Of its colour, from 0 (grey) to 1.
        origin: (2,) x and y of the centre at time 0, in pixels from the nearest place it can be.
        velocity: (2,) in pixels per second.
        span: Width in pixels of the square in which the centre moves.
    """

    shape: str
    timbre: str
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
    rng = clip_generator(config, split, index, "scene")
    hard = config.difficulty
    shape, timbre = _kind(config, index)
    main = _draw_thing(config, rng, shape, timbre, loudness=1.0, saturation=0.9)
    scene = [main]
    if rng.random() < hard - 0.5:
        others = SHAPES if config.words else [other for other in SHAPES if other != shape]
        other = str(rng.choice(others))
        timbre = str(rng.choice(SHAPES)) if config.words else other
        scene.insert(0, _draw_thing(config, rng, other, timbre, loudness=0.5, saturation=0.9))
    for _ in range(rng.integers(1, 2 + round(4 * hard))):
        other = str(rng.choice(SHAPES))
        scene.insert(0, _draw_thing(config, rng, other, other, loudness=0.0, saturation=0.9 * hard))
    return scene


def _kind(config: SyntheticConfig, index: int) -> tuple[str, str]:
    """Shape and timbre of a clip's sounding object."""
    if not config.words:
        return SHAPES[index % len(SHAPES)], SHAPES[index % len(SHAPES)]
    bits = bits_of(index)
    return BIT_SHAPES[bits.shape], BIT_TIMBRES[bits.timbre]


def clip_generator(config: SyntheticConfig, split: str, index: int, purpose: str) -> np.random.Generator:
    """Random numbers of a clip for one purpose: ``scene``, ``picture``, ``sound`` or ``words``."""
    purposes = ("scene", "picture", "sound", "words")
    return np.random.default_rng([config.seed, SPLITS.index(split), index, purposes.index(purpose)])


def _draw_thing(
    config: SyntheticConfig,
    rng: np.random.Generator,
    shape: str,
    timbre: str,
    loudness: float,
    saturation: float,
) -> Thing:
    radius = config.size * rng.uniform(*RADIUS)
    span = config.size - 2 * radius
    speed = config.size * rng.uniform(0.3, 0.9, 2) * rng.choice([-1, 1], 2)
    # The hue is heard as well: where shape and timbre are independent, it tells of neither.
    center, spread = (0.0, len(SHAPES) / 2) if config.words else (SHAPES.index(shape), HUE_SPREAD)
    hue = (center + spread * rng.uniform(-1, 1)) / len(SHAPES) % 1
    return Thing(shape, timbre, loudness, radius, hue, saturation, rng.uniform(0, 2 * span, 2), speed, span)


def describe(config: SyntheticConfig, split: str, index: int) -> dict:
    """The ground truth of a clip, as it goes into ``truth-SPLIT.jsonl``."""
    scene = make_scene(config, split, index)
    times = np.arange(config.num_frames) / config.fps
    said = {"labels": labels_of(index), "text": " ".join(words_of(config, split, index))}
    return {
        "id": f"{split}-{index:06d}",
        "path": clip_path(config, split, index),
        **(said if config.words else {"label": scene[-1].shape}),
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
        **({"timbre": thing.timbre} if config.words else {}),
        "loudness": thing.loudness,
        "radius": round(thing.radius, 2),
        "hue": round(thing.hue, 4),
        "boxes": boxes.tolist(),  # left, top, right, bottom in pixels, for each frame
        **(sound if thing.loudness else {}),
    }


def words_of(config: SyntheticConfig, split: str, index: int) -> list[str]:
    """What is said in a clip of a world with words, in two parts."""
    return utterance(bits_of(index), clip_generator(config, split, index, "words"))


def clip_path(config: SyntheticConfig, split: str, index: int) -> str:
    """Where a clip lies in the world's folder: SPLIT/SHAPE/ID.mp4, in a world with words SPLIT/ID.mp4."""
    folder = split if config.words else f"{split}/{SHAPES[index % len(SHAPES)]}"
    return f"{folder}/{split}-{index:06d}.mp4"
