"""How long a file is, by its packets: headers may say nothing, too little, or nonsense.

The header's word is where to look. From shortly before the end that it gives, packets are read to the end of the file;
where it gives none, or nothing comes from there on, from the beginning. No packet is decoded.

A few bytes can claim any time, and a plan has a clip for each stretch of it. So the sound has to carry the length:
where the file has few bytes for it, or few packets of sound come at its end, all packets are read and counted. The
picture has no say in that: a slide may be on display for an hour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import av
from av import error as av_error
from av.container import InputContainer

from datasets.media.headers import seeks_by_guess
from datasets.media.opening import MediaError, Source, opened, size_of
from datasets.media.reading import REREAD_BYTES
from datasets.media.streams import choose_track
from datasets.media.timeline import RESTARTING_FORMATS, Timeline

Kind = Literal["video", "audio"]
_BEFORE_END = 10.0  # seconds
_LEANEST = 2000  # bytes a second, picture and all, with which packets are counted
_SPARSEST = 2.0  # seconds to a packet of sound, on average over the whole file with its pauses
_SPARSEST_APE = 8.0  # whose frames have up to 6.7 s
# Looking for the streams' properties FFmpeg would decode some pictures, which a length has no need of.
_UNDECODED = {"skip_frame": "all"}


class _Ending(NamedTuple):
    """When the last packet ends in seconds, and, if counted, the packets of sound, or of the picture alone."""

    end: float
    packets: int | None


def media_length(source: Source, kinds: Sequence[Kind] = ("video", "audio")) -> float | None:
    """When the sound or the picture of a file ends, whichever is later, in seconds after its beginning.

    Of streams that are not read (subtitles, second sounds, covers) the length has no part.

    Args:
        source: The file.
        kinds: Which streams count; all of them must be there.

    Returns:
        Seconds; None where the file lacks one of them, can't be read, or claims a length that its sound (its picture
        where only that counts) does not carry.
    """
    try:
        quick = _quick_ending(source, kinds)
        if quick is not None and not _is_doubtful(quick, source):
            return quick.end
        with opened(source, _UNDECODED) as container:
            sparsest = _SPARSEST_APE if container.format.name == "ape" else _SPARSEST
            whole = _ending(container, kinds, None)
    except MediaError:
        return None
    if whole is None or not math.isfinite(whole.end):
        return None
    carried = whole.packets is None or whole.packets * sparsest >= whole.end - _BEFORE_END
    return whole.end if carried else None


def _quick_ending(source: Source, kinds: Sequence[Kind]) -> _Ending | None:
    """The ending from shortly before the end that the header gives; None where that tells nothing."""
    with opened(source, _UNDECODED) as container:
        duration = None if container.duration is None else container.duration / av.time_base
        restarts = container.format.name in RESTARTING_FORMATS
        if duration is None:
            return None
        if restarts and size_of(source) > REREAD_BYTES:
            return _Ending(duration, None)  # by its last packets
        if duration <= _BEFORE_END or restarts or seeks_by_guess(source):
            return None
        return _ending(container, kinds, duration - _BEFORE_END)


def _is_doubtful(ending: _Ending, source: Source) -> bool:
    """Whether an ending has to be proved by all packets."""
    sparse = ending.packets is not None and ending.packets * _SPARSEST < _BEFORE_END
    return sparse or size_of(source) < _LEANEST * ending.end


def _ending(container: InputContainer, kinds: Sequence[Kind], place: float | None) -> _Ending | None:
    """The end of the chosen streams, from packets at ``place`` seconds on; None where there are none."""
    chosen = [choose_track(container, kind)[0] for kind in kinds]
    counted = next((stream for stream in chosen if stream.type == "audio"), chosen[0]).index
    origin = (container.start_time or 0) / av.time_base
    if place is not None:
        try:
            container.seek(
                int((place + origin) / float(chosen[0].time_base)), stream=chosen[0], backward=True
            )
        except (av_error.FFmpegError, OverflowError):
            return None
    timeline, end = Timeline(container.format.name in RESTARTING_FORMATS), -math.inf
    count = 0
    try:
        for packet in container.demux(chosen):
            timeline.place(packet)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None:
                count += packet.stream.index == counted
                end = max(end, (stamp + (packet.duration or 0)) * float(packet.time_base or 0))
    except (av_error.InvalidDataError, av_error.EOFError):
        pass  # as far as it can be read
    return _Ending(end - origin, count) if end > -math.inf else None
