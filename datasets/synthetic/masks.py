"""Which pixels of a generated clip sound: the ground truth that heatmaps are measured against."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from datasets.synthetic.picture import shape_alpha
from datasets.synthetic.scene import SPLITS, SyntheticConfig, make_scene


@dataclass(frozen=True)
class ObjectMasks:
    """What is seen of the objects of a clip, halos left out.

    Attributes:
        sounding: (T, H, W) bool, pixels of objects that sound.
        silent: (T, H, W) bool, pixels of silent objects in front of which nothing sounds.
        sounding_box: (T, H, W) bool, the boxes around the objects that sound.
    """

    sounding: np.ndarray
    silent: np.ndarray
    sounding_box: np.ndarray


def object_masks(config: SyntheticConfig, split: str, index: int) -> ObjectMasks:
    """The masks of every frame of a clip, by its settings alone; see `read_world`, `clip_of`."""
    size, times = config.size, np.arange(config.num_frames) / config.fps
    masks = ObjectMasks(*np.zeros((3, config.num_frames, size, size), bool))
    for thing in make_scene(config, split, index):  # in the order in which they are drawn
        reach = int(np.ceil(1.05 * thing.radius)) + 1
        drawn = shape_alpha(thing, reach) >= 0.5
        box = np.ones_like(drawn)
        for t, (left, top) in enumerate(thing.centers(times).round().astype(int) - reach):
            here = _placed(drawn, left, top, size)
            own, others = (masks.sounding, masks.silent) if thing.loudness else (masks.silent, masks.sounding)
            own[t] |= here
            others[t] &= ~here
            if thing.loudness:
                masks.sounding_box[t] |= _placed(box, left, top, size)
    return masks


def _placed(stamp: np.ndarray, left: int, top: int, size: int) -> np.ndarray:
    """A small picture's place in an empty (size, size) one."""
    canvas = np.zeros((size, size), bool)
    x, y = (slice(max(low, 0), min(low + len(stamp), size)) for low in (left, top))
    canvas[y, x] = stamp[y.start - top : y.stop - top, x.start - left : x.stop - left]
    return canvas


def read_world(folder: Path) -> SyntheticConfig:
    """The settings of a world from its folder.

    Raises:
        ValueError: The folder holds no world.
    """
    path = folder / "world.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no world.json: it is no generated world (python -m datasets.synthetic)"
        )
    settings = json.loads(path.read_text(encoding="utf-8"))
    known = {f.name for f in fields(SyntheticConfig)}
    if not isinstance(settings, dict) or not settings.keys() <= known:
        raise ValueError(f"{path} does not hold the settings of a generated world")
    return SyntheticConfig(**settings)


def clip_of(name: str) -> tuple[str, int]:
    """Split and index of a clip's id, such as ``test-000012``.

    Raises:
        ValueError: It is no id of a generated clip.
    """
    split, _, number = name.partition("-")
    if split not in SPLITS or not number.isdigit():
        raise ValueError(f"{name!r} is no id of a generated clip, such as test-000012")
    return split, int(number)
