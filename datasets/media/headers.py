"""What file headers say that FFmpeg does not pass on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import BinaryIO

from datasets.media.opening import Source, size_of

# ASF's File Properties object: its id, its own size (8), an id of the file (16), then the file's size.
_ASF_PROPERTIES = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")
# MXF's partition pack: its key ends in the kind of partition, whether it is closed, and a zero.
_MXF_PARTITION = bytes.fromhex("060E2B34020501010D010201")
_HEAD = 64 * 1024


@contextmanager
def _reading(source: Source) -> Iterator[BinaryIO]:
    """The file at its beginning; where it stood stays as it was."""
    if isinstance(source, (str, PathLike)):
        with open(source, "rb") as file:
            yield file
        return
    place = source.tell()
    source.seek(0)
    try:
        yield source
    finally:
        source.seek(place)


def has_xing_header(source: Source) -> bool:
    """Whether an MP3's first frame counts its frames."""
    with _reading(source) as file:
        head, first = file.read(10), 0
        if head[:3] == b"ID3" and len(head) == 10:  # a size of 7 bits a byte
            first = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        file.seek(first, os.SEEK_SET)
        frame = file.read(4096)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def bytes_are_missing(source: Source) -> bool:
    """Whether an AVI, ASF, MXF, CAF or Wave64 file is shorter than it says, or ends within a page of Ogg.

    Their index or length is lost then, and FFmpeg works the length out anew.
    """
    with _reading(source) as file:
        head = file.read(_HEAD)
        if head[:4] == b"OggS":
            file.seek(max(size_of(source) - 2 * _HEAD, 0))
            return _ends_within_page(file.read())
    stated = 0
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        stated = 8 + int.from_bytes(head[4:8], "little")
    elif (at := head.find(_ASF_PROPERTIES)) >= 0 and head[:1] == b"0":
        at += len(_ASF_PROPERTIES) + 24
        # Then come creation date, number of packets, two durations, preroll (8 each) and flags: bit 0, a broadcast.
        flags = head[at + 48 : at + 49]
        stated = int.from_bytes(head[at : at + 8], "little") if flags and not flags[0] & 1 else 0
    footer = _mxf_footer(head)
    if footer is not None:
        stated = footer
    stated = stated or _sound_size(head)
    return size_of(source) < stated < 1 << 62


def _sound_size(head: bytes) -> int:
    """Up to where a CAF or Wave64 file goes by its header; 0 where that does not say."""
    if head[:4] == b"riff" and head[24:28] == b"wave":
        return int.from_bytes(head[16:24], "little")
    at = 8
    while head[:4] == b"caff" and at + 12 <= len(head):
        size = int.from_bytes(head[at + 4 : at + 12], "big", signed=True)
        if head[at : at + 4] == b"data" or size < 0:
            return at + 12 + size if size > 0 else 0
        at += 12 + size
    return 0


def _ends_within_page(tail: bytes) -> bool:
    """Whether the last page of Ogg in a file's end is not whole; a page has up to 65,307 bytes."""
    at = tail.rfind(b"OggS")
    segments = tail[at + 27 : at + 27 + tail[at + 26]] if 0 <= at < len(tail) - 26 else b""
    return at < 0 or len(tail) < at + 27 + len(segments) + sum(segments) or not segments


def seeks_by_guess(source: Source) -> bool:
    """Whether an MXF has lost the index at its end: FFmpeg then guesses where a second lies, and is seconds off."""
    with _reading(source) as file:
        footer = _mxf_footer(file.read(_HEAD))
    return footer is not None and not 0 < footer < size_of(source)


def _mxf_footer(head: bytes) -> int | None:
    """Where an MXF's last partition begins by its first one (0: not said); None for other files."""
    at = head.find(_MXF_PARTITION)
    if at < 0 or len(head) < at + 100:
        return None
    at += 16
    at += 1 + (head[at] & 0x7F if head[at] & 0x80 else 0)  # the length's own length
    at += 24  # version (4), KAG size (4), offsets of this partition and of the one before (8 each)
    return int.from_bytes(head[at : at + 8], "big")
