"""One clip of a video file to the sample that goes into a shard; what a worker of ``datasets.prepare`` does."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
from PIL import Image

from datasets.media.container import MediaClip, MediaError, MediaSettings, read_media
from datasets.prepare.fbank_stats import Moments, measure_fbank
from datasets.prepare.sources import Task, printable, rejected_clip
from datasets.shards.manifest import Reject
from datasets.shards.tar import TEXT_SUFFIX, Sample, make_key

SILENT = "silent"
TOO_SHORT = "too_short"
TRUNCATED = "truncated"

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
        partial: Keep clips whose text is known with what there is of their video: frames where there is no sound
            track, sound however silent or short, text alone where it can't be read or is truncated. Otherwise such
            clips are rejected.
    """

    media: MediaSettings = field(default_factory=MediaSettings)
    audio_format: Literal["flac", "wav"] = "flac"
    jpeg_quality: int = 90
    clip_seconds: float | None = 10.0
    min_seconds: float = 1.0
    silence_peak: float = 0.001
    keep_truncated: bool = False
    partial: bool = False

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
        task: The clip.
        measure: Whether its sound counts for the set's log-mel statistics.
    """

    task: Task
    measure: bool = False


class Encoded(NamedTuple):
    """What a worker makes of a task.

    Attributes:
        outcome: The sample, or the reason why there is none.
        moments: Log-mel statistics, of nothing unless they were asked for.
    """

    outcome: Sample | Reject
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
        """The clip's sample, or the reason why there is none."""
        task = work.task
        start, end = task.start, task.end
        if task.cut and end is not None:
            start, end = 0.0, end - (start or 0.0)
        partial = self.settings.partial and task.text is not None
        path = os.path.join(self.root, task.source)
        try:
            clip = read_media(path, start, end, self.settings.media, needs_sound=not partial)
            self._check_whole(clip)
            problem = self._problem_of_sound(clip)
            if problem is not None and not partial:
                raise problem
        except MediaError as error:
            if partial:
                return Encoded(self._text_alone(task, error), Moments())
            return Encoded(rejected_clip(task, error.reason, error.detail), Moments())
        measured = work.measure and problem is None
        moments = measure_fbank(clip.waveform, clip.sample_rate) if measured else Moments()
        return Encoded(self._sample(task, clip), moments)

    def _sample(self, task: Task, clip: MediaClip) -> Sample:
        settings = self.settings
        metadata = self._metadata(task, round(clip.duration, 6), clip.frame_times)
        if clip.tracks:
            metadata["tracks"] = clip.tracks
        members = _text_member(task)
        if clip.duration:
            sound = encode_audio(clip.waveform, clip.sample_rate, settings.audio_format)
            members.append((settings.audio_format, sound))
        else:
            metadata["absent"] = {"sound": "no_audio"}
        members += [
            (f"{i:02d}.jpg", encode_jpeg(f, settings.jpeg_quality)) for i, f in enumerate(clip.frames)
        ]
        return Sample(make_key(task.id), metadata, members)

    def _text_alone(self, task: Task, error: MediaError) -> Sample:
        """The sample of a clip without sound or frames, which says why it has none."""
        absent = {"sound": error.reason, "frames": error.reason}
        metadata = self._metadata(task, 0.0, []) | {"absent": absent}
        return Sample(make_key(task.id), metadata, _text_member(task))

    def _metadata(self, task: Task, duration: float, frame_times: list[float]) -> dict[str, Any]:
        return {
            "id": task.id,
            "labels": [self.labels[i] for i in task.labels],
            # In the video, also where the file is a segment already cut out of it.
            "start": task.start or 0.0,
            "duration": duration,
            "frame_times": frame_times,
            "source": printable(task.source),
        }

    def _check_whole(self, clip: MediaClip) -> None:
        """Raises a MediaError for a clip of which something is missing, unless such are kept."""
        if clip.truncated and not self.settings.keep_truncated:
            readable = f"{clip.duration:.3f} s of sound could be read"
            raise MediaError(TRUNCATED, f"damaged or cut off; {readable} (--keep_truncated true keeps it)")

    def _problem_of_sound(self, clip: MediaClip) -> MediaError | None:
        """Why a clip's sound is of no use; None where it is."""
        if clip.duration < self.settings.min_seconds:
            limit = f"less than --min_seconds {self.settings.min_seconds:g}"
            return MediaError(TOO_SHORT, f"{clip.duration:.3f} s of sound, {limit}")
        peak = int(np.abs(clip.waveform.astype(np.int32)).max(initial=0))
        if peak <= self.settings.silence_peak * 32768:
            limit = f"not above --silence_peak {self.settings.silence_peak:g}"
            return MediaError(SILENT, f"its peak is {peak / 32768:.2g} of full scale, {limit}")
        return None


def _text_member(task: Task) -> list[tuple[str, bytes]]:
    return [] if task.text is None else [(TEXT_SUFFIX, task.text.encode())]


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
