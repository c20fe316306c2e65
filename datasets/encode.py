"""One video file to the samples that go into a shard; what a worker of ``datasets.prepare`` does."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import av
import numpy as np
import soundfile
from av.error import FFmpegError
from PIL import Image

from datasets.fbank import Moments, measure_fbank
from datasets.index import Reject
from datasets.media import MediaClip, MediaError, MediaSettings, read_media
from datasets.shards import Sample, make_key
from datasets.sources import FILE_MISSING, Task, printable

SILENT = "silent"
TOO_SHORT = "too_short"
TRUNCATED = "truncated"

CUT_TOLERANCE = 1.0
"""Seconds by which a file may be longer than its segment and still be the segment itself: cutting without
decoding ends at packet borders (VGGSound's files have up to 10.1 s)."""

FLAC_LEVEL = 0.0
"""libsndfile's fastest. Measured on two real clips: decodes 12 % faster than its best and is 2-6 % larger."""


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How a clip is read and stored, and which clips are rejected.

    Attributes:
        media: Sampling rate, number and size of frames.
        audio_format: FLAC, or 16-bit WAV: 1.3 to 1.7 times larger, several times faster to decode.
        jpeg_quality: Of the frames, 1-95.
        clip_seconds: Files without a segment of their own are cut into consecutive clips of this length; a
            last piece shorter than half of it is left out, one file gives one clip at least. Null takes whole
            files.
        min_seconds: Clips with less sound than this are rejected (too_short).
        silence_peak: Clips whose sound never exceeds this share of full scale are rejected (silent).
        keep_truncated: Keep what is there of files that end before their header says or are damaged on the
            way; otherwise they are rejected (truncated).
    """

    media: MediaSettings = field(default_factory=MediaSettings)
    audio_format: Literal["flac", "wav"] = "flac"
    jpeg_quality: int = 90
    clip_seconds: float | None = 10.0
    min_seconds: float = 1.0
    silence_peak: float = 0.001
    keep_truncated: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 95:
            raise ValueError(f"jpeg_quality must be 1 to 95, got {self.jpeg_quality}")
        if self.clip_seconds is not None and not 0 < self.min_seconds <= self.clip_seconds:
            raise ValueError(
                f"0 < min_seconds <= clip_seconds is needed, got {self.min_seconds}, {self.clip_seconds}"
            )
        if not 0 <= self.silence_peak < 1:
            raise ValueError(
                f"silence_peak is a share of full scale, from 0 to below 1, got {self.silence_peak}"
            )


class Work(NamedTuple):
    """A task for a worker.

    Attributes:
        task: The file.
        measure: Whether its first clip's sound counts for the set's log-mel statistics.
    """

    task: Task
    measure: bool = False


class Encoded(NamedTuple):
    """What a worker makes of a task.

    Attributes:
        outcomes: The file's samples, or in place of each the reason why there is none.
        moments: Log-mel statistics, of nothing unless they were asked for.
    """

    outcomes: list[Sample | Reject]
    moments: Moments


@dataclass(frozen=True)
class Encoder:
    """Turns tasks into samples; picklable, so that it can be sent to workers.

    Attributes:
        root: Folder that the tasks' sources are relative to.
        settings: How to read and store clips.
        labels: Names of the classes, by id.
    """

    root: str
    settings: EncodeSettings
    labels: tuple[str, ...] = ()

    def __call__(self, work: Work) -> Encoded:
        """The samples of a file, or in place of each the reason why there is none."""
        task, moments = work.task, Moments()
        path = os.path.join(self.root, task.source)
        if not os.path.isfile(path):
            return Encoded([Reject(printable(task.source), FILE_MISSING, "no such file")], moments)
        outcomes = []
        for i, piece in enumerate(_pieces(path, task, self.settings.clip_seconds)):
            measured = moments if work.measure and i == 0 else None
            outcomes.append(self._encode(path, task, *piece, measured))
        return Encoded(outcomes, moments)

    def _encode(
        self,
        path: str,
        task: Task,
        start: float | None,
        end: float | None,
        several: bool,
        moments: Moments | None,
    ) -> Sample | Reject:
        try:
            clip = read_media(path, start, end, self.settings.media)
            self._examine(clip)
        except MediaError as error:
            where = f" (at {start:g} s)" if start else ""
            return Reject(printable(task.source), error.reason, printable(error.detail) + where)
        if moments is not None:
            moments.add(measure_fbank(clip.waveform, clip.sample_rate))
        metadata = {
            "id": f"{task.id}_{clip.start:.3f}" if several else task.id,
            "labels": [self.labels[i] for i in task.labels],
            # In the video, also where the file is a segment already cut out of it.
            "start": clip.start or task.start or 0.0,
            "duration": round(clip.duration, 6),
            "frame_times": clip.frame_times,
            "source": printable(task.source),
        }
        sound = (
            self.settings.audio_format,
            encode_audio(clip.waveform, clip.sample_rate, self.settings.audio_format),
        )
        frames = [
            (f"{i:02d}.jpg", encode_jpeg(f, self.settings.jpeg_quality)) for i, f in enumerate(clip.frames)
        ]
        return Sample(make_key(task.id, clip.start if several else None), metadata, [sound, *frames])

    def _examine(self, clip: MediaClip) -> None:
        """Raises a MediaError for a clip that was read but is of no use."""
        if clip.truncated and not self.settings.keep_truncated:
            raise MediaError(TRUNCATED, f"damaged or cut off; {clip.duration:.3f} s of sound could be read")
        if clip.duration < self.settings.min_seconds:
            raise MediaError(
                TOO_SHORT, f"{clip.duration:.3f} s of sound, less than {self.settings.min_seconds:g}"
            )
        peak = int(np.abs(clip.waveform.astype(np.int32)).max())
        if peak <= self.settings.silence_peak * 32768:
            raise MediaError(SILENT, f"its peak is {peak} of 32768")


def encode_audio(waveform: np.ndarray, sample_rate: int, audio_format: Literal["flac", "wav"]) -> bytes:
    """A FLAC or 16-bit WAV file of a (S,) int16 waveform."""
    buffer = io.BytesIO()
    level = FLAC_LEVEL if audio_format == "flac" else None
    soundfile.write(
        buffer, waveform, sample_rate, "PCM_16", format=audio_format.upper(), compression_level=level
    )
    return buffer.getvalue()


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """A JPEG (4:2:0) of an (H, W, 3) uint8 RGB picture."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _pieces(
    path: str, task: Task, clip_seconds: float | None
) -> list[tuple[float | None, float | None, bool]]:
    """(start, end, whether one of several) of the clips to read from a file."""
    if task.start is not None or task.end is not None:
        start, end = task.start or 0.0, task.end
        cut = task.cut
        if cut is None and end is not None:
            duration = _duration(path)
            cut = duration is not None and duration <= end - start + CUT_TOLERANCE
        if cut and end is not None:
            return [(0.0, end - start, False)]
        return [(start, end, False)]
    if clip_seconds is None:
        return [(None, None, False)]
    count = max(1, round((_duration(path) or 0.0) / clip_seconds))
    return [(i * clip_seconds, (i + 1) * clip_seconds, count > 1) for i in range(count)]


def _duration(path: str) -> float | None:
    """Seconds that the file's header promises; None where it says nothing or can't be read."""
    try:
        with av.open(path, metadata_errors="replace") as container:
            return None if container.duration is None else container.duration / av.time_base
    except FFmpegError:
        return None
