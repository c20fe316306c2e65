"""The two streams of a clip: its sound placed in time, and its picture, decoded no more than needed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import av
import numpy as np
from av import error as av_error
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from datasets.media.bounds import check_picture, check_sound
from datasets.media.opening import MediaError

JITTER_SECONDS = 0.02  # sound timestamps this close to where the samples end are rounding, not a gap
MAX_PADDING = 2048  # samples; AAC codes sound in blocks of 1024 (HE-AAC: 2048), the last filled up
MAX_GAP_SECONDS = 600.0  # a longer silence is a broken timestamp, and would fill the memory
# Not HEVC, whose "non-reference" pictures may serve higher layers, nor VP9, which adapts to every picture.
EXACT_SKIP_CODECS = frozenset({"h264"})
TRUNCATION_SECONDS = (
    0.25  # less than this missing at an end is a muxer's rounding, or a frame cut in two there
)
JOIN_SECONDS = 0.5  # how far sound and picture of a recording may end apart
PREROLL_SECONDS = 60.0  # pictures kept from before a segment where reading begins long before it


@dataclass
class SoundTrack:
    """Decoded sound placed on the segment's time line: mono, at the source's rate.

    Attributes:
        stream: The audio stream.
        rate: Its sampling rate in Hz.
        length: Number of samples the segment has room for; None without an end.
        first_channel_only: Take the first channel in place of the mean.
    """

    stream: av.AudioStream
    rate: int
    length: int | None
    first_channel_only: bool
    _pieces: list[np.ndarray] = field(default_factory=list)
    _filled: int = 0  # samples from the segment's start that are settled
    _next: int | None = None  # where the next decoded sample belongs if timestamps are continuous
    _first: float = math.inf  # seconds at which the first decoded frame begins, and the last one
    _last: float = -math.inf
    _losses: list[tuple[float, float]] = field(default_factory=list)
    _to_float: av.AudioResampler | None = None
    _layout: tuple[str, str, int] = ("", "", 0)

    def add(self, frame: av.AudioFrame, seconds: float | None) -> None:
        """Takes a frame presented ``seconds`` after the segment's start (None: when the last one ends)."""
        samples = self._mono(frame)
        at = self._next or 0
        if seconds is not None and (self._next is None or abs(seconds - at / self.rate) > JITTER_SECONDS):
            at = round(seconds * self.rate)
        self._next = at + len(samples)
        self._first, self._last = min(self._first, at / self.rate), max(self._last, at / self.rate)
        samples = samples[max(self._filled - at, 0) :]
        at = max(at, self._filled)
        if self.length is not None:
            samples = samples[: max(self.length - at, 0)]
        if not len(samples):
            return
        if at - self._filled > MAX_GAP_SECONDS * self.rate:
            gap = (at - self._filled) / self.rate
            raise MediaError("undecodable", f"a gap of {gap:.0f} s in the sound's timestamps")
        check_sound(self.rate, 1, at + len(samples))
        self._pieces += [np.zeros(at - self._filled, np.float32), samples]
        self._filled = at + len(samples)

    def _mono(self, frame: av.AudioFrame) -> np.ndarray:
        """(samples,) float32 of one frame, whatever its sample format, channels and rate."""
        parts = [frame]
        if frame.format.name != "fltp" or frame.sample_rate != self.rate:
            layout = (frame.format.name, frame.layout.name, frame.sample_rate)
            # Some streams change in the middle (HE-AAC finds its second channel late).
            if layout != self._layout:
                self._to_float = av.AudioResampler("fltp", frame.layout, self.rate)
                self._layout = layout
            assert self._to_float is not None
            frame.pts = None
            parts = self._to_float.resample(frame)
        pieces = [self._mixed(part) for part in parts]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, np.float32), *pieces])

    def _mixed(self, frame: av.AudioFrame) -> np.ndarray:
        """(samples,) float32 of a frame of planar floats. A frame is short, so numpy's overhead counts here."""
        # They are buffers, which the stubs don't know. Above 7 channels PyAV lists more than there are.
        planes = cast(Sequence[bytes], frame.planes)[: frame.layout.nb_channels]
        first, *others = planes[:1] if self.first_channel_only else planes
        mixed = np.frombuffer(first, np.float32, frame.samples).copy()
        for plane in others:
            mixed += np.frombuffer(plane, np.float32, frame.samples)
        mixed /= np.float32(1 + len(others))
        return mixed

    def lose(self, at: float, seconds: float) -> None:
        """Notes ``seconds`` of sound, from ``at`` seconds after the segment's start, that are damaged."""
        if at + seconds > 0 and (self.length is None or at < self.length / self.rate):
            self._losses.append((at, seconds))

    def damaged(self, joins: Sequence[float]) -> bool:
        """Whether something is lost inside; at ends only what is more than a frame cut in two there.

        Args:
            joins: Where recordings end and others go on, in seconds after the segment's start.
        """
        inside = [at for at, _ in self._losses if self._first < at < self._last]
        if any(all(abs(at - join) > JOIN_SECONDS for join in joins) for at in inside):
            return True
        return sum(seconds for _, seconds in self._losses) > TRUNCATION_SECONDS

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
        return resampled(np.concatenate(self._pieces), self.rate, sample_rate)


def resampled(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """(S,) int16 at ``sample_rate`` Hz of (samples,) float32 in -1 … 1 at ``rate`` Hz."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler("s16", "mono", sample_rate)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    waveform = np.concatenate([part.to_ndarray()[0] for part in parts])
    return waveform[: math.ceil(len(samples) * sample_rate / rate)]


@dataclass
class PictureTrack:
    """The picture's packets of a segment, in file order, and the decoder for them.

    Attributes:
        stream: The video stream.
        origin: The file's first presentation time in seconds.
        begin: The segment's start, in seconds after that.
        packets: From a keyframe at or before the segment on.
        joins: Where recordings end and others go on, in seconds.
        complete: Packets were read to the end of the file.
    """

    stream: av.VideoStream
    origin: float
    begin: float = 0.0
    packets: list[av.Packet] = field(default_factory=list)
    joins: Sequence[float] = ()
    complete: bool = False
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

    def take(self, packet: av.Packet) -> None:
        """Keeps a packet; what lies long before the segment goes once a later keyframe makes it needless."""
        if packet.is_keyframe and self.seconds(packet) <= self.begin - PREROLL_SECONDS:
            self.packets.clear()
        self.packets.append(packet)

    def settle(self) -> None:
        """Drops what comes before the first keyframe, which nothing can be made of."""
        first = next((i for i, packet in enumerate(self.packets) if packet.is_keyframe), 0)
        del self.packets[:first]
        self.damaged |= any(packet.is_corrupt and self._matters(packet) for packet in self.packets)

    def _matters(self, packet: av.Packet) -> bool:
        """Whether the segment's pictures may depend on a packet, and it is not a recording's last, cut in two."""
        at = self.seconds(packet)
        if any(abs(at - join) <= JOIN_SECONDS for join in self.joins):
            return False
        keys = (self.seconds(p) for p in self.packets if p.is_keyframe)
        since = max((key for key in keys if key <= self.begin), default=-math.inf)
        until = self.seconds(self.packets[-1]) - TRUNCATION_SECONDS if self.complete else math.inf
        return since <= at < until

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

    def spread(self, end: float, num_frames: int) -> list[float]:
        """The middles of N equal parts of the segment, up to ``end``, from its first picture on.

        A picture is on display until the next one comes, the last one to the end.
        """
        first = max(self.extent()[0], self.begin)
        if end <= first:
            raise MediaError("no_video", f"no picture from {self.begin:.3f} to {end:.3f} s")
        return [first + (i + 0.5) * (end - first) / num_frames for i in range(num_frames)]

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
        check_picture(codec.width * self.pixel_aspect, codec.height)
        skips = wanted is not None and codec.name in EXACT_SKIP_CODECS
        for run in runs:
            for packet in [*run, None]:
                unneeded = skips and packet is not None and packet.pts not in (wanted or ())
                codec.skip_frame = "NONREF" if unneeded else "DEFAULT"
                try:
                    yield from (frame for frame in codec.decode(packet) if not frame.is_corrupt)
                except av_error.MemoryError:
                    raise
                except av_error.FFmpegError:
                    self.damaged |= packet is not None and self._matters(packet)
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


def upright_rgb(
    frame: av.VideoFrame, shorter_side: int, pixel_aspect: float, scaler: VideoReformatter
) -> np.ndarray:
    """(H, W, 3) uint8 of a frame: square pixels, scaled down to ``shorter_side``, turned as displayed.

    Args:
        frame: The frame.
        shorter_side: In pixels; smaller pictures are not enlarged.
        pixel_aspect: Width of a pixel over its height.
        scaler: Prepares itself for a size once, so frames of one clip share it.
    """
    check_picture(frame.width * pixel_aspect, frame.height)
    width, height = max(round(frame.width * pixel_aspect), 1), frame.height
    scale = min(shorter_side / min(width, height), 1.0)
    width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = scaler.reformat(
        frame, width=width, height=height, format="rgb24", interpolation="BICUBIC", threads=1
    ).to_ndarray()
    side_data = cast(SideDataContainer, frame.side_data)
    if SideData.DISPLAYMATRIX not in side_data:
        return picture
    # 3 x 3, row by row, of which the upper left [[a, b], [c, d]] turn: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = np.frombuffer(bytes(side_data[SideData.DISPLAYMATRIX]), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        flips, picture = (b, c), picture.transpose(1, 0, 2)
    else:
        flips = (d, a)
    return np.ascontiguousarray(picture[:: -1 if flips[0] < 0 else 1, :: -1 if flips[1] < 0 else 1])
