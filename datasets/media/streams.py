"""Which of a file's streams are read, and what its header says about them.

Of several tracks the one marked default is taken, as FFmpeg and players do, and a commentary or audio description
only where there is nothing else; thumbnails and cover pictures are no video. Among equals FFmpeg's own choice decides.

What a header says of lengths is believed only where it states them. In MPEG-TS and -PS and in MP3 without a Xing
header FFmpeg works them out from the bytes that are there, which promises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from datasets.media.headers import has_xing_header
from datasets.media.opening import MediaError, Source

Stream = av.VideoStream | av.AudioStream

NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
"""Pictures that belong to a file but are not its video."""

_LESS_WANTED = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.descriptions
    | Disposition.clean_effects
    | Disposition.non_diegetic
    | Disposition.karaoke
    | Disposition.dependent
    | Disposition.still_image
)
_STILL_CODECS = frozenset({"bmp", "gif", "mjpeg", "png", "tiff", "webp"})  # a thumbnail nobody marked as one
# FFmpeg finds the lengths of these by looking at their last time stamps, or guesses them from the bit rate.
_UNSTATED = frozenset({"mpeg", "mpegts", "aac", "ac3", "eac3", "amr", "amrnb", "amrwb", "h264", "mpegvideo"})
_TAGGED_LENGTH = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")  # Matroska's statistics: 00:00:09.621000000


def choose_track(
    container: InputContainer, kind: str, wanted: str | int | None = None
) -> tuple[Any, list[Any]]:
    """The stream of a kind that is read.

    Args:
        container: The file.
        kind: ``video`` or ``audio``.
        wanted: A number among the streams of the kind, from 0, or a language as the file writes it (``eng``); None
            for the default one.

    Returns:
        The stream, and all streams of the kind (without thumbnails and covers).

    Raises:
        MediaError: There is none of the kind, or not the one that is wanted.
    """
    reason = f"no_{kind}"
    streams = [s for s in getattr(container.streams, kind) if kind == "audio" or not s.disposition & NO_VIDEO]
    if not streams:
        raise MediaError(reason, f"the file has no {kind} stream")
    if wanted is None:
        best = max(map(_rank, streams))
        equals = [stream for stream in streams if _rank(stream) == best]
        favourite = container.streams.best(kind)  # type: ignore[arg-type]
        return next((stream for stream in equals if stream == favourite), equals[0]), streams
    number = int(wanted) if str(wanted).isdigit() else None
    if number is not None and number < len(streams):
        return streams[number], streams
    spoken = [stream for stream in streams if (stream.language or "").lower() == str(wanted).lower()]
    if number is not None or not spoken:
        have = ", ".join(f"{i} ({stream.language or 'und'})" for i, stream in enumerate(streams))
        raise MediaError(reason, f"no {kind} track {wanted}; the file has {have}")
    return max(spoken, key=_rank), streams


def _rank(stream: Stream) -> tuple[bool, ...]:
    """What makes one track preferred to another; a codec that this FFmpeg lacks comes last."""
    codec = stream.codec_context  # None, which the stubs don't know, without a decoder
    return (
        codec is not None,
        not stream.disposition & _LESS_WANTED,
        bool(stream.disposition & Disposition.default),
        codec is not None and codec.name not in _STILL_CODECS,
    )


def describe_track(stream: Stream, streams: Sequence[Stream]) -> dict[str, object]:
    """What a clip's metadata says of the track it was read from."""
    words = {"language": stream.language, "title": stream.metadata.get("title")}
    known = {name: value for name, value in words.items() if value and value != "und"}
    return {"index": list(streams).index(stream), "of": len(streams), **known}


def stated_duration(container: InputContainer, source: Source) -> float | None:
    """How long a file is by a header that states it; None where FFmpeg works it out."""
    if container.duration is None or _is_worked_out(container, source):
        return None
    return container.duration / av.time_base


def stated_end(
    container: InputContainer, stream: Stream, origin: float, source: Source, tagged: bool = True
) -> float | None:
    """When a stream ends by what the header says of this very stream, in seconds after ``origin``.

    Args:
        container: The file.
        stream: One of its streams.
        origin: The file's first presentation time in seconds.
        source: The file again.
        tagged: Also believe Matroska's statistics, which are rounded to milliseconds.
    """
    if _is_worked_out(container, source):
        return None
    own = (
        "matroska" not in container.format.name
    )  # which gives a stream that it knows nothing of the file's length
    if own and stream.duration is not None and stream.time_base is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - origin
    for name, value in stream.metadata.items() if tagged else ():
        match = _TAGGED_LENGTH.match(value) if name.upper().startswith("DURATION") else None
        if match:
            hours, minutes, seconds = match.groups()
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - max(origin, 0.0)
    return None


def _is_worked_out(container: InputContainer, source: Source) -> bool:
    name = container.format.name
    return name in _UNSTATED or (name == "mp3" and not has_xing_header(source))
