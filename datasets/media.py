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
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import BinaryIO, Literal, cast

import av
import numpy as np
from av import error as av_error
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

Reason = Literal["missing", "undecodable", "no_audio", "no_video", "outside"]

# How far before a segment reading begins; the next where a format's seeking is coarse (MPEG-TS) or the frames
# there cannot be decoded yet (intra refresh). The first lets overlapping sound transforms settle.
SEEK_MARGINS_SECONDS = (0.25, 10.0, 60.0)
JITTER_SECONDS = 0.02  # sound timestamps this close to where the samples end are rounding, not a gap
INTERLEAVE_SECONDS = 10.0  # how far one stream may run ahead of the other in the file
TRUNCATION_SECONDS = 0.25  # less than this missing at the end is a muxer's rounding
MAX_PADDING = 2048  # samples; AAC codes sound in blocks of 1024 (HE-AAC: 2048), the last filled up
MAX_GAP_SECONDS = 600.0  # a longer silence is a broken timestamp, and would fill the memory
# Not HEVC, whose "non-reference" pictures may serve higher layers, nor VP9, which adapts to every picture.
EXACT_SKIP_CODECS = frozenset({"h264"})


class MediaError(ValueError):
    """A file that gives no clip.

    Attributes:
        reason: A stable slug: ``missing`` (no such file), ``undecodable`` (not a media file, or damaged
            beyond use), ``no_audio``, ``no_video`` (no such stream, or nothing of it in the segment),
            ``outside`` (the segment lies beyond the end of the file). Callers with further demands add their
            own (``silent``, ``too_short``, ...).
        detail: What was found, for people.
    """

    def __init__(self, reason: Reason | str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # keeps both arguments when it crosses from a worker process
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class MediaSettings:
    """What a clip is turned into.

    Attributes:
        sample_rate: Of the waveform, in Hz.
        num_frames: N, frames evenly spaced over the clip.
        shorter_side: Frames are scaled down to this, in pixels; smaller ones are never enlarged.
        first_channel_only: Take the first channel in place of the mean of all channels.
    """

    sample_rate: int = 16000
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
    chosen = picture.frames_at([times[i] for i in frame_indices])
    return MediaClip(
        waveform=waveform,
        sample_rate=settings.sample_rate,
        frames=[_upright_rgb(frame, settings.shorter_side, picture.pixel_aspect) for frame in chosen],
        frame_times=[round(picture.seconds(frame) - begin, 6) for frame in chosen],
        start=begin,
        truncated=reading.truncated(),
    )


@contextmanager
def _opened(source: str | PathLike[str] | BinaryIO) -> Iterator[InputContainer]:
    """The opened container; whatever FFmpeg cannot do with it becomes a MediaError."""
    if isinstance(source, (str, PathLike)):
        source = str(Path(source))
        if not Path(source).is_file():
            raise MediaError("missing", f"there is no file {source}")
    else:
        source.seek(0)
    try:
        with av.open(source, mode="r", metadata_errors="replace") as container:
            yield container
    except av_error.FFmpegError as error:
        raise MediaError("undecodable", error.strerror or str(error)) from error


@dataclass
class _Sound:
    """Decoded sound placed on the segment's time line: mono, at the source's rate.

    Attributes:
        rate: Source's sampling rate in Hz.
        length: Number of samples the segment has room for; None without an end.
        first_channel_only: Take the first channel in place of the mean.
    """

    rate: int
    length: int | None
    first_channel_only: bool
    _pieces: list[np.ndarray] = field(default_factory=list)
    _filled: int = 0  # samples from the segment's start that are settled
    _next: int | None = None  # where the next decoded sample belongs if timestamps are continuous
    _to_float: av.AudioResampler | None = None
    _layout: tuple[str, str, int] = ("", "", 0)

    def add(self, frame: av.AudioFrame, seconds: float | None) -> None:
        """Takes a frame presented ``seconds`` after the segment's start (None: when the last one ends)."""
        samples = self._mono(frame)
        at = self._next or 0
        if seconds is not None and (self._next is None or abs(seconds - at / self.rate) > JITTER_SECONDS):
            at = round(seconds * self.rate)
        self._next = at + len(samples)
        samples = samples[max(self._filled - at, 0) :]
        at = max(at, self._filled)
        if self.length is not None:
            samples = samples[: max(self.length - at, 0)]
        if not len(samples):
            return
        if at - self._filled > MAX_GAP_SECONDS * self.rate:
            gap = (at - self._filled) / self.rate
            raise MediaError("undecodable", f"a gap of {gap:.0f} s in the sound's timestamps")
        self._pieces += [np.zeros(at - self._filled, np.float32), samples]
        self._filled = at + len(samples)

    def _mono(self, frame: av.AudioFrame) -> np.ndarray:
        """(samples,) float32 of one frame, whatever its sample format, channels and rate."""
        if frame.format.name == "fltp" and frame.sample_rate == self.rate:
            channels = frame.to_ndarray()
            return channels[0] if self.first_channel_only else channels.mean(axis=0)
        layout = (frame.format.name, frame.layout.name, frame.sample_rate)
        if layout != self._layout:  # some streams change on the way (HE-AAC finds its second channel late)
            self._to_float = av.AudioResampler("fltp", frame.layout, self.rate)
            self._layout = layout
        assert self._to_float is not None
        frame.pts = None
        channels = np.concatenate([part.to_ndarray() for part in self._to_float.resample(frame)], axis=1)
        return channels[0] if self.first_channel_only else channels.mean(axis=0)

    def cut(self, seconds: float) -> None:
        """Drops what a codec's last block holds beyond the declared end of the sound."""
        excess = self._filled - round(seconds * self.rate)
        if 0 < excess < min(MAX_PADDING, self._filled):
            samples = np.concatenate(self._pieces)[:-excess]
            self._pieces, self._filled = [samples], len(samples)

    @property
    def seconds(self) -> float:
        """How much there is."""
        return self._filled / self.rate

    def resampled(self, sample_rate: int) -> np.ndarray:
        """(S,) int16 at ``sample_rate`` Hz.

        Raises:
            MediaError: There was none in the segment.
        """
        if not self._filled:
            raise MediaError("no_audio", "the sound has nothing in this segment that could be decoded")
        frame = av.AudioFrame.from_ndarray(np.concatenate(self._pieces)[None], format="fltp", layout="mono")
        frame.sample_rate = self.rate
        resampler = av.AudioResampler("s16", "mono", sample_rate)
        parts = [*resampler.resample(frame), *resampler.resample(None)]
        waveform = np.concatenate([part.to_ndarray()[0] for part in parts])
        return waveform[: math.ceil(self._filled * sample_rate / self.rate)]


@dataclass
class _Picture:
    """The picture's packets of a segment, in file order, and the decoder for them.

    Attributes:
        stream: The video stream.
        origin: The file's first presentation time in seconds.
        packets: From a keyframe at or before the segment on.
    """

    stream: av.VideoStream
    origin: float
    packets: list[av.Packet] = field(default_factory=list)
    damaged: bool = False
    exact: bool = True  # whether the frames on display by the file's time stamps are those that came

    def __post_init__(self):
        self.tick = float(self.stream.time_base or 0)
        aspect = self.stream.sample_aspect_ratio
        self.pixel_aspect = float(aspect) if aspect else 1.0

    def seconds(self, item: av.VideoFrame | av.Packet) -> float:
        """When a frame or packet is presented, in seconds from the file's first presentation time."""
        pts = item.pts if item.pts is not None else item.dts
        return (pts or 0) * self.tick - self.origin

    def starts_by(self, begin: float) -> bool:
        """Whether the first picture that stands for itself comes no later than ``begin`` seconds."""
        first = next((packet for packet in self.packets if packet.is_keyframe), None)
        return first is not None and self.seconds(first) <= begin

    def extent(self) -> tuple[float, float]:
        """Time of the first frame, and of the last frame's end. The packets must hold one frame at least."""
        times = sorted(self.seconds(packet) for packet in self.packets if not packet.is_discard)
        if not times:
            raise MediaError("no_video", "the picture has nothing in this segment")
        duration = (self.packets[-1].duration or 0) * self.tick
        if not duration and len(times) > 1:
            duration = (times[-1] - times[0]) / (len(times) - 1)
        return times[0], times[-1] + max(duration, self.tick)

    def spread(self, begin: float, end: float, num_frames: int) -> list[float]:
        """The middles of N equal parts of the time from ``begin`` to ``end`` in which there is picture."""
        first, last = self.extent()
        first, last = max(first, begin), min(last, end)
        if last <= first:
            raise MediaError("no_video", f"no picture from {begin:.3f} to {end:.3f} s, where there is sound")
        return [first + (i + 0.5) * (last - first) / num_frames for i in range(num_frames)]

    def frames_at(self, times: Sequence[float]) -> list[av.VideoFrame]:
        """The frames on display at the given ascending times.

        Raises:
            MediaError: No frame could be decoded.
        """
        if not times:
            return []
        wanted = self._pts_at(times)
        if wanted is not None:
            chosen = self._on_display(self._decode(self._runs(set(wanted)), set(wanted)), times)
            if [frame.pts for frame in chosen] == wanted:
                return chosen
        self.exact = False
        self.stream.codec_context.flush_buffers()
        chosen = self._on_display(self._decode([self.packets], None), times)
        if not chosen:
            raise MediaError("undecodable", "not one frame of the picture could be decoded")
        return chosen

    def _pts_at(self, times: Sequence[float]) -> list[int] | None:
        """Which frames are on display at ``times``, by their packets; None where packets don't say."""
        stamps = sorted(p.pts for p in self.packets if p.pts is not None and not p.is_discard)
        if any(packet.pts is None for packet in self.packets) or len(set(stamps)) < len(stamps):
            return None
        seconds = [pts * self.tick - self.origin for pts in stamps]
        return [stamps[max(bisect_right(seconds, time) - 1, 0)] for time in times]

    def _runs(self, wanted: set[int]) -> list[list[av.Packet]]:
        """The stretches of packets, each from a keyframe on, that the wanted frames depend on."""
        spans: list[list[int]] = []
        keys: list[int] = []
        for i, packet in enumerate(self.packets):
            if packet.is_keyframe:
                keys.append(i)
            if packet.pts not in wanted:
                continue
            # A picture shown before the keyframe it follows in the file may refer to what came before that.
            first = next((k for k in reversed(keys) if (self.packets[k].pts or 0) <= (packet.pts or 0)), 0)
            if spans and first < spans[-1][1]:
                spans[-1][1] = i + 1
            else:
                spans.append([first, i + 1])
        return [self.packets[first:last] for first, last in spans]

    def _decode(self, runs: Iterable[list[av.Packet]], wanted: set[int] | None) -> Iterator[av.VideoFrame]:
        """Frames of the runs in presentation order; with ``wanted``, some others are left out."""
        codec = self.stream.codec_context
        skips = wanted is not None and codec.name in EXACT_SKIP_CODECS
        for run in runs:
            for packet in [*run, None]:
                unneeded = skips and packet is not None and packet.pts not in (wanted or ())
                codec.skip_frame = "NONREF" if unneeded else "DEFAULT"
                try:
                    yield from (frame for frame in codec.decode(packet) if not frame.is_corrupt)
                except av_error.InvalidDataError:
                    self.damaged = True
            codec.flush_buffers()

    def _on_display(self, frames: Iterable[av.VideoFrame], times: Sequence[float]) -> list[av.VideoFrame]:
        """For each of the ascending times the last frame that is not later (or the first of all)."""
        chosen: list[av.VideoFrame] = []
        shown: av.VideoFrame | None = None
        for frame in frames:
            while shown is not None and len(chosen) < len(times) and self.seconds(frame) > times[len(chosen)]:
                chosen.append(shown)
            if len(chosen) == len(times):
                return chosen
            shown = frame
        return chosen + [shown] * (len(times) - len(chosen)) if shown is not None else []


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
        videos[0].codec_context.thread_count = 1
        self.audio = container.streams.audio[0]
        self.picture = _Picture(videos[0], self.origin)
        rate = self.audio.codec_context.sample_rate
        if not rate:
            raise MediaError("no_audio", "the sound's sampling rate is unknown")
        length = None if end is None else round((end - begin) * rate)
        self.sound = _Sound(rate, length, settings.first_channel_only)
        self.damaged = False
        self.read_until = [begin, begin]  # of picture and sound

    def demux(self, target: float) -> None:
        """Decodes the segment's sound and collects its picture's packets, from ``target`` seconds on."""
        duration = self.container.duration
        if duration is not None and self.begin >= duration / av.time_base:
            raise MediaError("outside", f"starts at {self.begin} s of {duration / av.time_base:.3f} s")
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
        if (
            seconds is not None
        ):  # decoding times never exceed presentation times: all that is wanted came before
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
        except av_error.InvalidDataError:
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


def _upright_rgb(frame: av.VideoFrame, shorter_side: int, pixel_aspect: float) -> np.ndarray:
    """(H, W, 3) uint8 of a frame: square pixels, scaled down to ``shorter_side``, turned as displayed."""
    width, height = max(round(frame.width * pixel_aspect), 1), frame.height
    scale = min(shorter_side / min(width, height), 1.0)
    width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC").to_ndarray()
    side_data = cast(SideDataContainer, frame.side_data)
    if SideData.DISPLAYMATRIX not in side_data:
        return picture
    # 3 x 3, row by row, of which the upper left [[a, b], [c, d]] turn: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = np.frombuffer(bytes(side_data[SideData.DISPLAYMATRIX]), np.int32)[:5]
    if abs(b) > abs(a):
        flips, picture = (b, c), picture.transpose(1, 0, 2)
    else:
        flips = (d, a)
    return np.ascontiguousarray(picture[:: -1 if flips[0] < 0 else 1, :: -1 if flips[1] < 0 else 1])
