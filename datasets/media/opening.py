"""Opening media files: what FFmpeg cannot do with one becomes a ``MediaError`` that says why."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import BinaryIO, Literal

import av
from av import error as av_error
from av.container import InputContainer

from datasets.media.bounds import MAX_PIXELS, MAX_SAMPLES, TooLargeError

# FFmpeg recognises formats by content, whatever a file's name: playlists that open other files and addresses, session
# descriptions that open sockets, and a hundred others. These are the ones that the endings in `suffixes` stand for.
_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,h264,hevc,ivf,m4v,matroska,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,ogg,rm,wav,w64,wv"
)
_OPEN_ONLY = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
DECODER_BOUNDS = {"max_pixels": str(MAX_PIXELS), "max_samples": str(MAX_SAMPLES)}
"""Options of FFmpeg's decoders: what a stream claims later, in a frame's own header, is bounded too."""

Reason = Literal["file_missing", "undecodable", "no_audio", "no_video", "outside", "truncated"]
Source = str | PathLike[str] | BinaryIO
"""A path, or a seekable binary file."""


class MediaError(ValueError):
    """A file that gives no clip.

    Attributes:
        reason: A stable slug: ``file_missing`` (no such file, or no regular one), ``undecodable`` (not a media file,
            or damaged beyond use), ``no_audio``, ``no_video`` (no such stream, or nothing of it in the segment),
            ``outside`` (the segment lies beyond the end of the file). Callers with further demands add their
            own (``silent``, ``too_short``, ``truncated``, ...).
        detail: What was found, for people.
    """

    def __init__(self, reason: Reason | str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # keeps both arguments when it crosses from a worker process
        return type(self), (self.reason, self.detail)


@contextmanager
def opened(source: Source, options: dict[str, str] | None = None) -> Iterator[InputContainer]:
    """The opened container, closed at the end.

    Args:
        source: What to open.
        options: Of FFmpeg's, for all decoders.

    Raises:
        MediaError: It can't be opened, or whatever FFmpeg raises in the ``with`` block.
        MemoryError: There was not enough memory, which says nothing about the file.
    """
    if isinstance(source, (str, PathLike)):
        source = os.fspath(source)
        _check_regular(source)
        source = f"file:{source}"  # else a name with a colon would be one of FFmpeg's protocols
    else:
        source.seek(0)
    try:
        wanted = {**_OPEN_ONLY, **DECODER_BOUNDS, **(options or {})}
        with av.open(source, mode="r", options=wanted, metadata_errors="replace") as container:
            yield container
    except (MediaError, MemoryError):  # the latter is also the base of FFmpeg's own
        raise
    except av_error.InvalidDataError as error:
        what = "not a media file, or one whose header is missing or damaged (an MP4's is often written last)"
        raise MediaError("undecodable", what) from error
    except av_error.FFmpegError as error:
        raise MediaError("undecodable", error.strerror or str(error)) from error
    except Exception as error:
        # What is too large, and PyAV's own errors for what it does not know: formats, layouts, numbers out of range.
        what = str(error) if isinstance(error, TooLargeError) else f"{type(error).__name__}: {error}"
        raise MediaError("undecodable", what) from error


def _check_regular(path: str) -> None:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        raise MediaError("file_missing", getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its writer
        raise MediaError("file_missing", "it is no regular file")
    if not status.st_size:
        raise MediaError("undecodable", "the file is empty")


def size_of(source: Source) -> int:
    """The file's length in bytes."""
    if isinstance(source, (str, PathLike)):
        return os.stat(source).st_size
    place = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(place)
    return size
