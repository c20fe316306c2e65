"""Reads the sound and N frames of a clip out of a video file in one sequential pass, with PyAV.

How it is fast, and still exact:

* Compressed packets are read once, in file order. The sound is decoded in the same pass; the picture's packets are
  kept (a clip's worth of them, a few megabytes) until the true times of all frames are known.
* Then only what the chosen frames depend on is decoded: groups of pictures that hold none of them are passed
  over, nothing after the last of them is decoded, and in H.264, pictures that no other refers to are skipped
  unless they were chosen. What is delivered is bit-identical to a full decode; where a file does not keep
  what it promises (a chosen frame fails to come out), all is decoded and the choice is made among what came.
* Only chosen frames are converted and scaled. One thread: clips are prepared in parallel, one a process.

How it is exact in time: sound and picture are placed by their presentation times (edit lists, late streams,
encoder delay and gaps included), on a time line whose zero is the file's first presentation time. Waveform
sample 0 is the segment's start; where the sound starts later or has a gap there is silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from av.video.reformatter import VideoReformatter

from datasets.media.opening import MediaError, Source, opened
from datasets.media.reading import SEEK_MARGINS_SECONDS, Reading
from datasets.media.tracks import upright_rgb

__all__ = ["SAMPLE_RATE", "MediaClip", "MediaError", "MediaSettings", "read_media", "read_sound"]

SAMPLE_RATE = 16_000
"""Hz, of the sound in shards and of what models take."""


@dataclass(frozen=True)
class MediaSettings:
    """What a clip is turned into.

    Attributes:
        sample_rate: Of the waveform, in Hz.
        num_frames: N, frames evenly spaced over the clip.
        shorter_side: Frames are scaled down to this, in pixels; smaller ones are never enlarged.
        first_channel_only: Take the first channel in place of the mean of all channels.
        audio_track: Which sound of several: a number from 0 or a language as the file writes it (``eng``); null
            for the one marked default, and no commentary.
        video_track: The same of the picture.
    """

    sample_rate: int = SAMPLE_RATE
    num_frames: int = 10
    shorter_side: int = 256
    first_channel_only: bool = False
    audio_track: int | str | None = None
    video_track: int | str | None = None

    def __post_init__(self):
        for name in ("sample_rate", "num_frames", "shorter_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class MediaClip:
    """One clip's sound and frames.

    Attributes:
        waveform: (S,) int16, mono, from the segment's start to the end of the segment or of the sound.
        sample_rate: In Hz.
        frames: (H, W, 3) uint8 RGB each, upright.
        frame_times: For each frame its presentation time in seconds after waveform sample 0 (below 0 where it
            was on display already when the segment began).
        start: Segment's start in seconds from the file's first presentation time.
        truncated: Of what the file's header promises for the segment something is missing or could not be decoded.
        tracks: Where the file has several sounds or pictures, which was read: by ``audio`` or ``video``.
    """

    waveform: np.ndarray
    sample_rate: int
    frames: list[np.ndarray]
    frame_times: list[float]
    start: float
    truncated: bool
    tracks: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def duration(self) -> float:
        """Length of the sound in seconds."""
        return len(self.waveform) / self.sample_rate


def read_media(
    source: Source,
    start: float | None = None,
    end: float | None = None,
    settings: MediaSettings | None = None,
    frame_indices: Sequence[int] | None = None,
    *,
    needs_sound: bool = True,
) -> MediaClip:
    """Reads one clip.

    The N chosen frames are those on display at the middles of N equal parts of the segment's sound, from the first
    picture on; of a file without a sound track, of its picture.

    Args:
        source: A path, or a seekable binary file.
        start: Segment's start in seconds from the file's first presentation time; None for the beginning.
        end: Segment's end; None for the end of the file.
        settings: What to make of it.
        frame_indices: Which of the N frames to decode, ascending; None for all.
        needs_sound: A file without a sound track is an error; otherwise its waveform is empty.

    Raises:
        MediaError: The file gives no clip; its ``reason`` says why.
        MemoryError: There was not enough memory to decode it, which says nothing about the file.
    """
    settings = settings or MediaSettings()
    begin = start or 0.0
    if begin < 0 or not math.isfinite(begin) or (end is not None and not end > begin):
        raise ValueError(f"a segment needs 0 <= start < end, got start {start} and end {end}")
    indices = range(settings.num_frames) if frame_indices is None else frame_indices
    for margin in SEEK_MARGINS_SECONDS:
        with opened(source) as container:
            reading = Reading(container, source, begin, end, settings, needs_sound=needs_sound)
            if not reading.demux(margin):
                continue
            clip = _clip(reading, begin, settings, indices)
            exact = reading.picture is None or reading.picture.exact
            if exact or reading.from_start or margin >= SEEK_MARGINS_SECONDS[-2]:
                return clip
    raise AssertionError("the last margin always gives a clip or an error")


def read_sound(
    source: Source,
    start: float | None = None,
    end: float | None = None,
    settings: MediaSettings | None = None,
) -> MediaClip:
    """Reads the sound of a file that need not have a picture; see ``read_media``."""
    settings = settings or MediaSettings()
    begin = start or 0.0
    for margin in SEEK_MARGINS_SECONDS:
        with opened(source) as container:
            reading = Reading(container, source, begin, end, settings, picture=False)
            if reading.demux(margin):
                return _clip(reading, begin, settings, ())
    raise AssertionError("the last margin always gives a clip or an error")


def _clip(reading: Reading, begin: float, settings: MediaSettings, frame_indices: Sequence[int]) -> MediaClip:
    picture, scaler = reading.picture, VideoReformatter()
    sound = reading.sound
    waveform = np.zeros(0, np.int16) if sound is None else sound.resampled(settings.sample_rate)
    frames: list[np.ndarray] = []
    times: list[float] = []
    if picture is not None:
        end = begin + len(waveform) / settings.sample_rate
        if sound is None:
            end = min(reading.limit, picture.extent()[1])
        wanted = picture.spread(end, settings.num_frames)
        chosen = picture.frames_at([wanted[i] for i in frame_indices])
        aspect, side = picture.pixel_aspect, settings.shorter_side
        frames = [upright_rgb(frame, side, aspect, scaler) for frame in chosen]
        times = [round(picture.seconds(frame) - begin, 6) for frame in chosen]
    return MediaClip(
        waveform=waveform,
        sample_rate=settings.sample_rate,
        frames=frames,
        frame_times=times,
        start=begin,
        truncated=reading.truncated(),
        tracks=reading.tracks,
    )
