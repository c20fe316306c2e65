"""How long a file is, by its packets: headers may say nothing, too little, or nonsense.

The header's word is where to look. From shortly before the end that it gives, packets are read to the end of the file;
where it gives none, or nothing comes from there on, from the beginning. No packet is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

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
# Looking for the streams' properties FFmpeg would decode some pictures, which a length has no need of.
_UNDECODED = {"skip_frame": "all"}


def media_length(source: Source, kinds: Sequence[Kind] = ("video", "audio")) -> float | None:
    """When the sound or the picture of a file ends, whichever is later, in seconds after its beginning.

    Of streams that are not read (subtitles, second sounds, covers) the length has no part.

    Args:
        source: The file.
        kinds: Which streams count; all of them must be there.

    Returns:
        Seconds; None where the file lacks one of them or can't be read.
    """
    try:
        with opened(source, _UNDECODED) as container:
            duration = None if container.duration is None else container.duration / av.time_base
            restarts = container.format.name in RESTARTING_FORMATS
            if duration is not None and restarts and size_of(source) > REREAD_BYTES:
                return duration  # by its last packets
            if (
                duration is not None
                and duration > _BEFORE_END
                and not restarts
                and not seeks_by_guess(source)
            ):
                end = _end_after(container, kinds, duration - _BEFORE_END)
                if end is not None:
                    return end
        with opened(source, _UNDECODED) as container:
            return _end_after(container, kinds, None)
    except MediaError:
        return None


def _end_after(container: InputContainer, kinds: Sequence[Kind], place: float | None) -> float | None:
    """The end of the chosen streams, from packets at ``place`` seconds on; None where there are none."""
    chosen = [choose_track(container, kind)[0] for kind in kinds]
    origin = (container.start_time or 0) / av.time_base
    if place is not None:
        try:
            container.seek(
                int((place + origin) / float(chosen[0].time_base)), stream=chosen[0], backward=True
            )
        except (av_error.FFmpegError, OverflowError):
            return None
    timeline, end = Timeline(container.format.name in RESTARTING_FORMATS), -math.inf
    try:
        for packet in container.demux(chosen):
            timeline.place(packet)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None:
                end = max(end, (stamp + (packet.duration or 0)) * float(packet.time_base or 0))
    except (av_error.InvalidDataError, av_error.EOFError):
        pass  # as far as it can be read
    return end - origin if end > -math.inf else None
