"""Films of heat: the input, the same under its heat, and below them the sound's waveform with the moving time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from torch import Tensor

from atomic import replacing
from datasets.decode import resize_and_crop
from datasets.media.container import SAMPLE_RATE, MediaError, MediaSettings, read_media
from engine.evaluation.heat_pictures import overlay
from engine.ground.grounder import Grounder

#: Side of each of the two pictures, height of the waveform below them.
_SIDE, _STRIP = 256, 64
_SHORTEST = 0.05  # seconds: what is left of a video behind its last whole part


@dataclass(frozen=True)
class Part:
    """A stretch of a video as long as the model hears at a time.

    Attributes:
        waveform: (S,) int16 at 16 kHz.
        frames: (F, 3, h, w) uint8, squares cut from the middle.
        times: (F,) seconds from the stretch's start.
    """

    waveform: Tensor
    frames: Tensor
    times: Tensor


def read_parts(video: Path, seconds: float, fps: int, side: int) -> Iterator[Part]:
    """A video, stretch by stretch.

    Args:
        video: The file.
        seconds: Length of a stretch; the last one is shorter.
        fps: Frames a second, evenly spaced.
        side: Of the frames in pixels.

    Raises:
        ValueError: It can't be read, or has no sound or picture.
    """
    start = 0.0
    while True:
        try:
            sound = read_media(video, start, start + seconds, MediaSettings(num_frames=1), frame_indices=())
            length = sound.duration
            if length < _SHORTEST:
                return
            count = max(1, round(length * fps))
            settings = MediaSettings(num_frames=count, shorter_side=side)
            clip = read_media(video, start, start + seconds, settings)
        except MediaError as error:
            if start > 0:  # behind the end of sound or picture
                return
            raise ValueError(f"{video} can't be read: {error}") from None
        frames = [resize_and_crop(torch.from_numpy(x).permute(2, 0, 1), side) for x in clip.frames]
        times = (torch.arange(count) + 0.5) * (length / count)
        yield Part(torch.from_numpy(clip.waveform), torch.stack(frames), times)
        if length < seconds - _SHORTEST:
            return
        start += seconds


def make_film(grounder: Grounder, video: Path, out: Path, fps: int = 10) -> float:
    """Writes the film of a video, with its sound.

    Full heat is the highest similarity of the whole film; 0 and less is no heat.

    Args:
        grounder: The model.
        video: What to look at.
        out: An MP4 to write.
        fps: Frames a second.

    Returns:
        The similarity that is shown as full heat.

    Raises:
        ValueError: The video can't be read.
    """
    side = max(_SIDE, grounder.image_size)
    heats = []
    for part in read_parts(video, grounder.seconds, fps, side):
        small = torch.stack([resize_and_crop(x, grounder.image_size) for x in part.frames])
        heats.append(grounder.heat_at(part.waveform, small, part.times))
    top = max(float(torch.cat(heats).max()), torch.finfo(torch.float32).tiny)
    parts = read_parts(video, grounder.seconds, fps, side)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file, _Writer(file, fps, (side + _STRIP, 2 * side)) as writer:
        for part, heat in zip(parts, heats, strict=True):
            pictures = torch.cat([part.frames, overlay(part.frames, heat, top)], dim=3)
            strips = waveform_strips(part.waveform, part.times, 2 * side)
            writer.write(torch.cat([pictures, strips], dim=2), part.waveform)
    return top


def waveform_strips(waveform: Tensor, times: Tensor, width: int) -> Tensor:
    """(F, 3, strip, width) uint8: the sound's envelope, and a line at each frame's time."""
    wave = torch.nn.functional.adaptive_max_pool1d(waveform.float().abs()[None], width)[0]
    height = (wave / wave.max().clamp_min(1.0) * (_STRIP / 2 - 2)).round().clamp_min(1)
    rows = (torch.arange(_STRIP) - (_STRIP - 1) / 2).abs()
    grey = torch.where(rows[:, None] <= height, 170, 25).to(torch.uint8)
    strips = grey.expand(len(times), 3, -1, -1).clone()
    columns = (times / (len(waveform) / SAMPLE_RATE) * width).long().clamp(0, width - 2)
    for strip, column in zip(strips, columns.tolist(), strict=True):
        strip[:, :, column : column + 2] = torch.tensor([255, 200, 0], dtype=torch.uint8)[:, None, None]
    return strips


class _Writer:
    """An MP4 of H.264 and AAC.

    Args:
        file: Where to.
        fps: Frames a second.
        size: Height and width, even.
    """

    def __init__(self, file: BinaryIO, fps: int, size: tuple[int, int]) -> None:
        self._container = av.open(file, "w", format="mp4")
        self._video = self._container.add_stream(
            "libx264", rate=fps, options={"preset": "veryfast", "crf": "18"}
        )
        self._video.height, self._video.width = size
        self._video.pix_fmt = "yuv420p"
        self._audio = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self._fps, self._count, self._samples = fps, 0, 0

    def __enter__(self) -> _Writer:
        return self

    def write(self, pictures: Tensor, waveform: Tensor) -> None:
        """Adds (F, 3, h, w) uint8 pictures and the (S,) int16 sound that goes with them."""
        block = av.AudioFrame.from_ndarray(waveform.numpy()[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, self._samples, Fraction(1, SAMPLE_RATE)
        self._container.mux(self._audio.encode(block))
        for picture in pictures.permute(0, 2, 3, 1).numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self._count, Fraction(1, self._fps)
            self._container.mux(self._video.encode(frame))
            self._count += 1
        self._samples += len(waveform)

    def __exit__(self, *_: object) -> None:
        self._container.mux(self._audio.encode(None))
        self._container.mux(self._video.encode(None))
        self._container.close()
