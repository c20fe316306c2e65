"""Images with masks, asked for by sounds: folders laid out as DenseAV's ADE20K sets, and how well masks are found.

::

    FOLDER/prompted_segmentation.csv      a row a pair: image_location, ade_class_id, and vggsound_file (the sound) or
                                          speech_prompt_file (a sentence that names it)
    FOLDER/frames/IMAGE_LOCATION          the image, a .jpg
    FOLDER/annotations/IMAGE_LOCATION     with _seg.png in place of .jpg; a pixel's class is int(R / 10) · 256 + G
    FOLDER/audio/NAME                     the last part of the sound's path

As in the published evaluation (github.com/mhamilton723/DenseAV, ``ADE20KSoundPrompted``), rows without a sound and
those of class 0 do not count, and images and masks are cut to the square in their middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.decode import DecodeError, decode_audio, decode_picture, resize_and_crop
from datasets.manifests.rows import is_number, read_table
from engine.evaluation.grounding import grounding_scores, segmentation_by_class, to_pixels
from engine.ground.grounder import Grounder

TABLE = "prompted_segmentation.csv"
#: The column that names the sound.
PROMPTS = {"sound": "vggsound_file", "speech": "speech_prompt_file"}


@dataclass(frozen=True)
class PromptedImages:
    """Pairs of image and sound with the pixels of what sounds.

    Attributes:
        waveforms: (S,) int16 of each.
        frames: (N, 3, image_size, image_size) uint8.
        truth: (N, image_size, image_size) bool.
        classes: (N,) int64, ADE20K's.
    """

    waveforms: list[Tensor]
    frames: Tensor
    truth: Tensor
    classes: Tensor


def read_prompted(folder: Path, prompt: str, image_size: int, limit: int | None = None) -> PromptedImages:
    """Reads the pairs of a folder.

    Args:
        folder: In the layout above.
        prompt: Of `PROMPTS`.
        image_size: Side of the images in pixels.
        limit: Only this many pairs, from the first.

    Raises:
        ValueError: A column or file is missing or can't be read, or there are no pairs; it is named.
    """
    column = PROMPTS[prompt]
    rows = read_table(folder / TABLE, ("image_location", "ade_class_id", column))
    chosen = [(line, row) for line, row in rows if row[column] and row["ade_class_id"] != "0"][:limit]
    if not chosen:
        raise ValueError(f"{folder / TABLE} has no row with a {column} and an ade_class_id above 0")
    waveforms, frames, truth, classes = [], [], [], []
    for line, row in tqdm(chosen, desc="reading", unit="pair", disable=None):
        if not is_number(row["ade_class_id"]):
            raise ValueError(f"{folder / TABLE}: {line}: ade_class_id {row['ade_class_id']!r} is no number")
        number, image = int(row["ade_class_id"]), row["image_location"]
        sound = folder / "audio" / PurePosixPath(row[column]).name
        labels = folder / "annotations" / (image.removesuffix(".jpg") + "_seg.png")
        waveforms.append(_decoded(sound, line, decode_audio))
        frames.append(resize_and_crop(_decoded(folder / "frames" / image, line, decode_picture), image_size))
        mask = class_of(_decoded(labels, line, decode_picture)) == number
        truth.append(resize_and_crop(mask[None].byte(), image_size, nearest=True)[0].bool())
        classes.append(number)
    return PromptedImages(waveforms, torch.stack(frames), torch.stack(truth), torch.tensor(classes))


def class_of(labels: Tensor) -> Tensor:
    """ADE20K's annotations (3, H, W) uint8 -> (H, W) int64 classes: ``int(R / 10) · 256 + G``."""
    red, green, _ = labels.long()
    return red // 10 * 256 + green


def _decoded(path: Path, line: str, decode: Callable[[bytearray], Tensor]) -> Tensor:
    """A file's sound or picture; a ``ValueError`` names the row and the file that can't be read."""
    try:
        return decode(bytearray(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{line}: {path} can't be read: {error.strerror}") from None
    except DecodeError as error:
        raise ValueError(f"{line}: {path}: {error}") from None


def measure_prompted(grounder: Grounder, images: PromptedImages) -> dict[str, float]:
    """``map`` and ``miou``, the means over classes of `segmentation_by_class`, and `grounding_scores` of all pairs."""
    heats = [
        grounder.heat_of(waveform, frame[None])[0]
        for waveform, frame in zip(images.waveforms, images.frames, strict=True)
    ]
    heat = to_pixels(torch.stack(heats), (images.truth.shape[-2], images.truth.shape[-1]))
    by_class = segmentation_by_class(heat, images.truth, images.classes).values()
    scores = grounding_scores(heat, images.truth, torch.zeros_like(images.truth))
    return {
        "map": sum(scores["ap"] for scores in by_class) / len(by_class),
        "miou": sum(scores["iou"] for scores in by_class) / len(by_class),
        **{name: value for name, value in scores.items() if "silent" not in name},
    }
