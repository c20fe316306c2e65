"""Reads the sound and N frames of a clip out of a video file in one sequential pass, with PyAV.

How it is fast, and still exact:

* Compressed packets are read once, in file order. The sound is decoded on the way; the picture's packets are
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
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

import av
import numpy as np
from av import error as av_error
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from datasets.media.tracks import MediaError, PictureTrack, SoundTrack, upright_rgb

__all__ = ["SAMPLE_RATE", "MediaClip", "MediaError", "MediaSettings", "read_media"]

SAMPLE_RATE = 16_000
"""Hz, of the sound in shards and of what models take."""

# How far before a segment reading begins; the next where a format's seeking is coarse (MPEG-TS) or the frames
# there cannot be decoded yet (intra refresh). The first lets overlapping sound transforms settle.
SEEK_MARGINS_SECONDS = (0.25, 10.0, 60.0)
INTERLEAVE_SECONDS = 10.0  # how far one stream may run ahead of the other in the file
TRUNCATION_SECONDS = 0.25  # less than this missing at the end is a muxer's rounding


@dataclass(frozen=True)
class MediaSettings:
    """What a clip is turned into.

    Attributes:
        sample_rate: Of the waveform, in Hz.
        num_frames: N, frames evenly spaced over the clip.
        shorter_side: Frames are scaled down to this, in pixels; smaller ones are never enlarged.
        first_channel_only: Take the first channel in place of the mean of all channels.
    """

    sample_rate: int = SAMPLE_RATE
    num_frames: int = 10
    shorter_side: int = 256
    first_channel_only: bool = False

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
        truncated: The file holds less than its header promises, or parts that could not be decoded.
    """

    waveform: np.ndarray
    sample_rate: int
    frames: list[np.ndarray]
    frame_times: list[float]
    start: float
    truncated: bool

    @property
    def duration(self) -> float:
        """Length of the sound in seconds."""
        return len(self.waveform) / self.sample_rate


def read_media(
    source: str | PathLike[str] | BinaryIO,
    start: float | None = None,
    end: float | None = None,
    settings: MediaSettings | None = None,
    frame_indices: Sequence[int] | None = None,
) -> MediaClip:
    """Reads one clip.

    The N chosen frames are those on display at the middles of N equal parts of the time in which the segment
    has both sound and picture.

    Args:
        source: A path, or a seekable binary file.
        start: Segment's start in seconds from the file's first presentation time; None for the beginning.
        end: Segment's end; None for the end of the file.
        settings: What to make of it.
        frame_indices: Which of the N frames to decode, ascending; None for all.

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
        last = margin >= begin or margin == SEEK_MARGINS_SECONDS[-1]
        with _opened(source) as container:
            reading = _Reading(container, begin, end, settings)
            reading.demux(begin - margin)
            if last or reading.picture.starts_by(begin):
                clip = _clip(reading, begin, settings, indices)
                if last or reading.picture.exact:
                    return clip
    raise AssertionError("the last margin always gives a clip or an error")


def _clip(
    reading: _Reading, begin: float, settings: MediaSettings, frame_indices: Sequence[int]
) -> MediaClip:
    picture = reading.picture
    waveform = reading.sound.resampled(settings.sample_rate)
    times = picture.spread(begin, begin + len(waveform) / settings.sample_rate, settings.num_frames)
    chosen, scaler = picture.frames_at([times[i] for i in frame_indices]), VideoReformatter()
    return MediaClip(
        waveform=waveform,
        sample_rate=settings.sample_rate,
        frames=[upright_rgb(frame, settings.shorter_side, picture.pixel_aspect, scaler) for frame in chosen],
        frame_times=[round(picture.seconds(frame) - begin, 6) for frame in chosen],
        start=begin,
        truncated=reading.truncated(),
    )


@contextmanager
def _opened(source: str | PathLike[str] | BinaryIO) -> Iterator[InputContainer]:
    """The opened container; whatever FFmpeg cannot do with it becomes a MediaError."""
    if isinstance(source, (str, PathLike)):
        source = os.fspath(source)
        try:
            status = os.stat(source)
        except (OSError, ValueError) as error:  # a path may hold a zero byte
            raise MediaError("file_missing", getattr(error, "strerror", None) or str(error)) from error
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its writer
            raise MediaError("file_missing", "it is no regular file")
        if not status.st_size:
            raise MediaError("undecodable", "the file is empty")
    else:
        source.seek(0)
    try:
        with av.open(source, mode="r", metadata_errors="replace") as container:
            yield container
    except av_error.MemoryError:
        raise
    except av_error.InvalidDataError as error:
        what = "no video, or one whose header is missing or damaged (an MP4's is often written last)"
        raise MediaError("undecodable", what) from error
    except av_error.FFmpegError as error:
        raise MediaError("undecodable", error.strerror or str(error)) from error


class _Reading:
    """One pass over the packets of a segment."""

    def __init__(self, container: InputContainer, begin: float, end: float | None, settings: MediaSettings):
        self.container = container
        self.begin, self.end = begin, end
        self.origin = (container.start_time or 0) / av.time_base
        videos = [s for s in container.streams.video if Disposition.attached_pic not in s.disposition]
        if not videos:
            raise MediaError("no_video", "the file has no video stream")
        if not container.streams.audio:
            raise MediaError("no_audio", "the file has no audio stream")
        self.audio = container.streams.audio[0]
        for stream in (videos[0], self.audio):
            if stream.codec_context is None:  # not in the stubs: a codec this FFmpeg lacks
                raise MediaError("undecodable", f"no decoder for the {stream.type} stream")
        for stream in (videos[0], self.audio):
            stream.codec_context.thread_count = 1
        self.picture = PictureTrack(videos[0], self.origin)
        rate = self.audio.codec_context.sample_rate
        if not rate:
            raise MediaError("no_audio", "the sound's sampling rate is unknown")
        length = None if end is None else round((end - begin) * rate)
        self.sound = SoundTrack(rate, length, settings.first_channel_only)
        self.damaged = False
        self.read_until = [begin, begin]  # of picture and sound

    def demux(self, target: float) -> None:
        """Decodes the segment's sound and collects its picture's packets, from ``target`` seconds on."""
        duration = self.container.duration
        if duration is not None and self.begin >= duration / av.time_base:
            raise MediaError("outside", f"the file ends at {duration / av.time_base:.3f} s")
        if target > 0:
            offset = int((target + self.origin) / self.picture.tick)
            self.container.seek(offset, stream=self.picture.stream, backward=True)
        limit = math.inf if self.end is None else self.end
        try:
            for packet in self.container.demux(self.picture.stream, self.audio):
                self._take(packet, limit)
                if min(self.read_until) >= limit or max(self.read_until) > limit + INTERLEAVE_SECONDS:
                    break
        except (av_error.InvalidDataError, av_error.EOFError):
            self.damaged = True  # what came before it is kept
        self._hear(None)
        declared = self._declared_end(self.audio)
        if declared is not None:
            self.sound.cut(declared - self.begin)

    def _take(self, packet: av.Packet, limit: float) -> None:
        if not packet.size:
            return  # PyAV ends each stream with an empty packet
        order = packet.dts if packet.dts is not None else packet.pts
        is_sound = packet.stream is self.audio
        seconds = None if order is None else order * float(packet.time_base) - self.origin
        if seconds is not None:  # no later packet is decoded, so none is presented, before this
            self.read_until[is_sound] = max(self.read_until[is_sound], seconds)
        self.damaged |= packet.is_corrupt
        if seconds is not None and seconds >= limit:
            return
        if not is_sound:
            self.picture.packets.append(packet)
        elif seconds is None or seconds > self.begin - SEEK_MARGINS_SECONDS[0] - 1.0:
            self._hear(packet)

    def _hear(self, packet: av.Packet | None) -> None:
        """Decodes a packet of sound; None for what the decoder still holds."""
        try:
            frames = self.audio.codec_context.decode(packet)
        except av_error.MemoryError:
            raise
        except av_error.FFmpegError:  # decoders have many errors for damage (AAC: "operation not permitted")
            self.damaged = True
            return
        for frame in frames:
            seconds = frame.time
            self.sound.add(frame, None if seconds is None else seconds - self.origin - self.begin)

    def truncated(self) -> bool:
        """Whether something is missing that the header promises, or could not be decoded."""
        if self.damaged or self.picture.damaged:
            return True
        limit = math.inf if self.end is None else self.end
        got = self.picture.extent()[1], self.begin + self.sound.seconds
        promised = self._declared_end(self.picture.stream), self._declared_end(self.audio)
        missing = [min(p or 0.0, limit) - g for p, g in zip(promised, got, strict=True)]
        if self.container.duration is not None:
            missing.append(min(self.container.duration / av.time_base, limit) - max(got))
        return max(missing) > TRUNCATION_SECONDS

    def _declared_end(self, stream: av.VideoStream | av.AudioStream) -> float | None:
        """When a stream ends by the file's header, where that says so."""
        if stream.duration is None or stream.time_base is None:
            return None
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - self.origin
