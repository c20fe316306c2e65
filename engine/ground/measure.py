"""How well a model finds what sounds, in a world or in images with masks: ``python -m engine.ground.measure RUN DATA``.

Each clip of a world's split is heard as a whole beside its middle frame, and the heat measured against the masks of
what sounds and of what is silent (`engine.evaluation.grounding.grounding_scores`), for the model and for the same
model untrained. `engine.ground.prompted` says how folders of images are laid out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from atomic import check_writable, write_atomically
from datasets.decode import resize_and_crop
from datasets.media.container import SAMPLE_RATE, MediaSettings, read_media
from datasets.synthetic.masks import object_masks, read_world
from datasets.synthetic.scene import SPLITS, clip_path, make_scene
from engine.evaluation.grounding import grounding_scores, time_alignment, to_pixels
from engine.ground.grounder import Grounder
from engine.ground.prompted import PROMPTS, TABLE, measure_prompted, read_prompted
from home_paths import command_line
from models import build_model
from terminal import show_control_characters


@dataclass(frozen=True)
class WorldClips:
    """The clips of a split with the truth about their middle frames.

    Attributes:
        waveforms: (S,) int16 of each.
        frames: (N, 3, image_size, image_size) uint8.
        sounding: (N, h, w) bool.
        silent: (N, h, w) bool.
        box: (N, h, w) bool, boxes around what sounds.
        loudness: Of each clip: its true envelope, 1000 values a second.
    """

    waveforms: list[Tensor]
    frames: Tensor
    sounding: Tensor
    silent: Tensor
    box: Tensor
    loudness: list[np.ndarray]


def read_clips(folder: Path, split: str, image_size: int, limit: int | None = None) -> WorldClips:
    """Reads the clips of a split from their MP4s.

    Args:
        folder: A generated world.
        split: train, val or test.
        image_size: Side of the frames in pixels.
        limit: Only this many clips, from the first.

    Raises:
        ValueError: The folder holds no world, or no clip of the split.
    """
    world = read_world(folder)
    count = min(getattr(world, split), limit or getattr(world, split))
    if not count:
        raise ValueError(f"{folder} has no clips of the split {split}")
    waveforms, frames, truth, loudness = [], [], [], []
    for index in tqdm(range(count), desc="reading", unit="clip", disable=None):
        settings = MediaSettings(num_frames=1, shorter_side=max(world.size, 1))
        clip = read_media(folder / clip_path(world, split, index), settings=settings)
        waveforms.append(torch.from_numpy(clip.waveform))
        frames.append(resize_and_crop(torch.from_numpy(clip.frames[0]).permute(2, 0, 1), image_size))
        masks = object_masks(world, split, index)
        shown = round(clip.frame_times[0] * world.fps)
        truth.append(np.stack([masks.sounding[shown], masks.silent[shown], masks.sounding_box[shown]]))
        times = np.arange(round(world.seconds * 1000)) / 1000
        loudness.append(sum(x.envelope(times, world.seconds) for x in make_scene(world, split, index)))
    sounding, silent, box = torch.from_numpy(np.stack(truth, axis=1))
    return WorldClips(waveforms, torch.stack(frames), sounding, silent, box, loudness)


def measure(grounder: Grounder, clips: WorldClips) -> dict[str, float]:
    """`grounding_scores` of the clips, the same pointing by boxes, and whether heat comes and goes with loudness."""
    heats, profiles, envelopes = [], [], []
    for waveform, frame, loudness in zip(clips.waveforms, clips.frames, clips.loudness, strict=True):
        volume, moments, weight = grounder.volume(waveform, frame[None])
        heats.append((volume[0] * weight[:, None, None]).sum(0) / weight.sum().clamp_min(0.001))
        inside = moments < len(waveform) / SAMPLE_RATE
        profiles.append(volume[0, inside].amax((1, 2)))
        places = (moments[inside] * 1000).long().clamp_max(len(loudness) - 1)
        envelopes.append(torch.from_numpy(loudness)[places])
    heat = to_pixels(torch.stack(heats), (clips.sounding.shape[-2], clips.sounding.shape[-1]))
    scores = grounding_scores(heat, clips.sounding, clips.silent)
    by_box = grounding_scores(heat, clips.box, clips.silent)
    profile, envelope = torch.stack(profiles), torch.stack(envelopes)
    return {
        **scores,
        "pointing_box": by_box["pointing"],
        "pointing_box_chance": by_box["pointing_chance"],
        "time_alignment": time_alignment(profile, envelope, torch.ones_like(profile)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the command line names."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m engine.ground.measure", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", help="a run with objective.kind dense, or a checkpoint of one")
    parser.add_argument(
        "data",
        type=Path,
        help=f"a generated world (python -m datasets.synthetic), or a folder with a {TABLE} (docs/dense.md)",
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="of a world (default: test)")
    parser.add_argument(
        "--prompt", choices=PROMPTS, default="sound", help="what asks for a mask (default: sound)"
    )
    parser.add_argument("--limit", type=int, help="only the first N clips")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    options = parser.parse_args(command_line(arguments))
    try:
        if options.json:
            check_writable(options.json.parent)
        grounder = Grounder.open(options.model)
        score, what = _read(options, grounder.image_size)
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    torch.manual_seed(0)
    untrained = Grounder(build_model(grounder.model.config), grounder.audio_front_end.config)  # type: ignore[arg-type]
    found = {"trained": score(grounder), "untrained": score(untrained)}
    print(f"{what}\n{'':24}{'trained':>10}{'untrained':>10}")
    for name, value in found["trained"].items():
        print(f"{name:24}{value:10.3f}{found['untrained'][name]:10.3f}")
    if options.json:
        write_atomically(options.json, json.dumps(found, indent=1) + "\n")


def _read(options: argparse.Namespace, image_size: int) -> tuple[Callable[[Grounder], dict[str, float]], str]:
    """What measures a model on the data that a command line names, and how much there is of it."""
    if (options.data / TABLE).is_file():
        images = read_prompted(options.data, options.prompt, image_size, options.limit)
        return partial(measure_prompted, images=images), f"{len(images.frames)} pairs, by {options.prompt}"
    clips = read_clips(options.data, options.split, image_size, options.limit)
    return partial(measure, clips=clips), f"{len(clips.frames)} clips of {options.split}"


if __name__ == "__main__":
    main()
