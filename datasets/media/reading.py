"""One pass over the packets of a segment: the sound is decoded in that pass, the picture's packets are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import av
from av import error as av_error
from av.container import InputContainer

from datasets.media.bounds import check_sound
from datasets.media.headers import bytes_are_missing, seeks_by_guess
from datasets.media.opening import DECODER_BOUNDS, MediaError, Source, size_of
from datasets.media.streams import Stream, choose_track, describe_track, stated_duration, stated_end
from datasets.media.timeline import RESTARTING_FORMATS, Timeline
from datasets.media.tracks import TRUNCATION_SECONDS, PictureTrack, SoundTrack

if TYPE_CHECKING:
    from datasets.media.container import MediaSettings

# How far before a segment reading begins; the next where a format's seeking is coarse (MPEG-TS) or the frames
# there cannot be decoded yet (intra refresh), at last from the file's beginning. The first lets overlapping sound
# transforms settle.
SEEK_MARGINS_SECONDS = (0.25, 10.0, 60.0, math.inf)
INTERLEAVE_SECONDS = 30.0  # how far one stream may run ahead of the other in the file
# Formats whose timestamps may restart are read from their beginning up to this size, since only what came
# before tells where such a file's seconds lie. In larger ones time stamps are taken as they are.
REREAD_BYTES = 64_000_000


class Reading:
    """A segment being read.

    Args:
        container: The opened file.
        source: The same, to look at.
        begin: The segment's start in seconds from the file's first presentation time.
        end: Its end; None for the end of the file.
        settings: What to make of it.
        picture: Whether the picture is read too.
        needs_sound: A file without a sound track is an error.

    Attributes:
        sound: The segment's sound; None where the file has none.
        picture: Its picture; None where that is not read.
        tracks: What was chosen where there were several.
        from_start: Whether it was read from the file's beginning on.
    """

    def __init__(
        self,
        container: InputContainer,
        source: Source,
        begin: float,
        end: float | None,
        settings: MediaSettings,
        *,
        picture: bool = True,
        needs_sound: bool = True,
    ) -> None:
        self.container, self.source = container, source
        self.begin, self.limit = begin, math.inf if end is None else end
        self.origin = (container.start_time or 0) / av.time_base
        self.tracks: dict[str, dict[str, object]] = {}
        self.sound: SoundTrack | None = None
        self.picture: PictureTrack | None = None
        if picture:
            stream = self._open("video", settings.video_track)
            self.picture = PictureTrack(stream, self.origin, begin)
        if needs_sound or container.streams.audio:
            stream = self._open("audio", settings.audio_track)
            rate = stream.codec_context.sample_rate
            if not rate:
                raise MediaError("no_audio", "the sound's sampling rate is unknown")
            check_sound(rate, stream.codec_context.channels)
            length = None if end is None else round((end - begin) * rate)
            self.sound = SoundTrack(stream, rate, length, settings.first_channel_only)
        self.damaged = False
        self.complete = False  # whether packets were read to the end of the file
        self.from_start = True
        self._timeline = Timeline(container.format.name in RESTARTING_FORMATS)
        self.read_until = {stream.index: begin for stream in self._streams}
        self._first_sound = math.inf  # seconds
        self._ends: dict[int, float] = {}  # stream -> when the last of its packets that came ends

    @property
    def _streams(self) -> list[Stream]:
        return [track.stream for track in (self.sound, self.picture) if track is not None]

    def _open(self, kind: str, wanted: str | int | None):
        stream, streams = choose_track(self.container, kind, wanted)
        if stream.codec_context is None:  # not in the stubs: a codec this FFmpeg lacks
            raise MediaError("undecodable", f"no decoder for the {kind} stream")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = dict(DECODER_BOUNDS)
        if len(streams) > 1:
            self.tracks[kind] = describe_track(stream, streams)
        return stream

    def demux(self, margin: float) -> bool:
        """Decodes the segment's sound and collects its picture's packets, from ``margin`` seconds before it on.

        Returns:
            Whether they reach back far enough to begin with; they always do where the file was read from its beginning.

        Raises:
            MediaError: The segment lies beyond the end of the file.
        """
        rereads = self._timeline.restarts and size_of(self.source) <= REREAD_BYTES
        self.from_start = rereads or margin >= self.begin or seeks_by_guess(self.source)
        if not self.from_start and not self._seek(self.begin - margin):
            return False
        try:
            for packet in self.container.demux():
                self._take(packet)
                if self._is_past():
                    break
            else:
                self.complete = True
        except (av_error.InvalidDataError, av_error.EOFError):
            self.damaged = self.complete = True  # what came before it is kept
        if self.sound is not None:
            self._hear(None)
        self._settle()
        reaches = (self.sound is None or self._first_sound <= self.begin) and (
            self.picture is None or self.picture.starts_by(self.begin)
        )
        if not self.from_start and not reaches:
            return False
        end = max((self._ends.get(index, -math.inf) for index in self.read_until), default=-math.inf)
        if self.complete and self.begin > 0 and end <= self.begin:
            raise MediaError("outside", f"the file ends at {max(end, 0.0):.3f} s")
        return True

    def _is_past(self) -> bool:
        """Whether the rest of the file has nothing of the segment."""
        until = self.read_until.values()
        if min(until) >= self.limit:
            return True
        nothing_yet = self.picture is not None and not self.picture.packets
        return max(until) > self.limit + INTERLEAVE_SECONDS and not nothing_yet

    def _seek(self, target: float) -> bool:
        stream = self._streams[-1]  # of both the picture, which is decoded from keyframes on
        try:
            offset = int((target + self.origin) / float(stream.time_base or 1))
            self.container.seek(offset, stream=stream, backward=True)
        except (av_error.FFmpegError, OverflowError):
            return False  # formats without an index; where it stands now is not known
        return True

    @property
    def _joins(self) -> list[float]:
        return [join - self.origin for join in self._timeline.joins]

    def _settle(self) -> None:
        if self.sound is not None:
            stated = stated_end(self.container, self.sound.stream, self.origin, self.source, tagged=False)
            if stated is not None:
                self.sound.cut(stated - self.begin)
        if self.picture is not None:
            self.picture.complete = self.complete
            self.picture.joins = self._joins
            self.picture.settle()

    def _take(self, packet: av.Packet) -> None:
        if not packet.size:
            return  # PyAV ends each stream with an empty packet
        self._timeline.place(packet)
        order = packet.dts if packet.dts is not None else packet.pts
        tick = float(packet.time_base or 0)
        seconds = None if order is None else order * tick - self.origin
        index = packet.stream.index
        if seconds is not None:
            shown = seconds if packet.pts is None else packet.pts * tick - self.origin
            self._ends[index] = max(self._ends.get(index, -math.inf), shown + (packet.duration or 0) * tick)
        if index not in self.read_until:
            return
        if seconds is not None:  # no later packet is decoded, so none is presented, before this
            self.read_until[index] = max(self.read_until[index], seconds)
            if seconds >= self.limit:
                return
        if self.picture is not None and index == self.picture.stream.index:
            self.picture.take(packet)
            return
        self._first_sound = min(self._first_sound, math.inf if seconds is None else seconds)
        if seconds is None or seconds > self.begin - SEEK_MARGINS_SECONDS[0] - 1.0:
            self._hear(packet)

    def _hear(self, packet: av.Packet | None) -> None:
        """Decodes a packet of sound; None for what the decoder still holds."""
        assert self.sound is not None
        lost = packet is not None and packet.is_corrupt
        try:
            frames = self.sound.stream.codec_context.decode(packet)
        except av_error.MemoryError:
            raise
        except av_error.FFmpegError:  # decoders have many errors for damage (AAC: "operation not permitted")
            frames, lost = [], packet is not None
        for frame in frames:
            seconds = frame.time
            self.sound.add(frame, None if seconds is None else seconds - self.origin - self.begin)
        if lost and packet is not None:
            tick = float(packet.time_base or 0)
            stamp = packet.pts if packet.pts is not None else packet.dts
            # Without one it is the rest of a frame from before the place that was sought.
            if stamp is not None:
                self.sound.lose(stamp * tick - self.origin - self.begin, (packet.duration or 0) * tick)

    def truncated(self) -> bool:
        """Whether something of the segment is damaged, or missing that the header promises."""
        joins = [join - self.begin for join in self._joins]
        damaged = self.picture is not None and self.picture.damaged
        if self.damaged or damaged or (self.sound is not None and self.sound.damaged(joins)):
            return True
        return self.complete and self._missing() > TRUNCATION_SECONDS

    def _missing(self) -> float:
        """Seconds of the segment that the header promises and that did not come."""
        ends: dict[int, float] = {}
        if self.sound is not None:
            ends[self.sound.stream.index] = self.begin + self.sound.seconds
        if self.picture is not None:
            ends[self.picture.stream.index] = self.picture.extent()[1]
        for index, end in ends.items():
            ends[index] = max(end, self.read_until[index])
        # The header counts every stream: subtitles, second sounds and covers that are not read here too.
        last = max([*self._ends.values(), *ends.values()])
        if bytes_are_missing(self.source):
            return self.limit - last
        missing, unstated = [0.0], False
        for stream in self._streams:
            stated = stated_end(self.container, stream, self.origin, self.source)
            unstated |= stated is None
            missing.append(min(stated or 0.0, self.limit) - ends[stream.index])
        whole = stated_duration(self.container, self.source)
        if unstated and whole is not None:
            missing.append(min(whole - max(self.origin, 0.0), self.limit) - last)
        return max(missing)
