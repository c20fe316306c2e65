"""The pictures of a generated clip."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

from datasets.synthetic.scene import SyntheticConfig, Thing, clip_generator, make_scene

HALO = 1.7  # radii
PERIOD = (
    1 / 12
)  # of the surface patterns, of the picture's side: two of them to a 16-pixel patch at 96 pixels
DEPTH = 0.75  # of the patterns: how much darker the dark parts are


def render_frames(config: SyntheticConfig, split: str, index: int) -> np.ndarray:
    """(T, H, W, 3) uint8 pictures of a clip."""
    rng = clip_generator(config, split, index, "picture")
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
    """Draws an object, with its halo if it sounds, in every frame, at whole pixels."""
    side = canvas.shape[1]
    reach = int(np.ceil(thing.radius * (HALO if thing.loudness else 1.05))) + 1
    u, v = _offsets(thing, reach)
    alpha = shape_alpha(thing, reach)[..., None]
    wave = 2 * np.pi * thing.radius / (PERIOD * side)
    value = (0.95 if thing.loudness else 0.65) * (1 - DEPTH * _dark(thing.shape, wave * u, wave * v))
    color = value[..., None] * np.array(colorsys.hsv_to_rgb(thing.hue, thing.saturation, 255), np.float32)
    distance = np.maximum(np.sqrt(u * u + v * v) - 0.7, 0)
    halo = (0.85 * np.exp(-((distance / 0.4) ** 2)))[..., None]
    for picture, (left, top), bright in zip(canvas, centers.round().astype(int) - reach, glow, strict=True):
        x, y = (slice(max(low, 0), min(low + 2 * reach + 1, side)) for low in (left, top))
        inner = slice(y.start - top, y.stop - top), slice(x.start - left, x.stop - left)
        under = picture[y, x].astype(np.float32)
        if thing.loudness:
            under += bright * halo[inner] * (255 - under)
        picture[y, x] = under + alpha[inner] * (color[inner] - under)


def _offsets(thing: Thing, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """(1, n) and (n, 1) offsets from an object's middle in radii, up to ``reach`` pixels to each side."""
    u = np.arange(-reach, reach + 1, dtype=np.float32)[None] / thing.radius
    return u, u.T


def shape_alpha(thing: Thing, reach: int) -> np.ndarray:
    """(n, n) how much of each pixel around an object's middle the object covers, 0 to 1; n = 2·reach + 1."""
    return (_inside(thing.shape, *_offsets(thing, reach)) * thing.radius + 0.5).clip(0, 1)


def _dark(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How dark the surface pattern of the shape is at a point, 0 to 1; u and v are phases, from the object's middle."""
    match shape:
        case "disc":  # plain
            waves = np.zeros(())
        case "ring":  # rings
            waves = np.cos(np.sqrt(u * u + v * v))
        case "square":  # a grid of thin lines
            waves = 2 * np.maximum(np.cos(u), np.cos(v)) - 1
        case "triangle":  # level stripes
            waves = np.cos(v)
        case "star":  # checks
            waves = 2 * np.cos(u / 2) * np.cos(v / 2)
        case "plus":  # upright stripes
            waves = np.cos(u)
        case "bars":  # slanted stripes
            waves = np.cos(0.7 * (u + v))
        case "hourglass":  # dots
            waves = 2 * np.minimum(np.cos(u), np.cos(v))
        case _:
            raise AssertionError(f"no such shape: {shape}")
    return np.broadcast_to((1.5 * waves).clip(0, 1), (len(v), u.shape[1]))


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
