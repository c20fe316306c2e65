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
    """Whether an AVI or ASF file is shorter than it says; it lost its index, and FFmpeg works its length out anew."""
    with _reading(source) as file:
        head = file.read(_HEAD)
    stated = 0
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        stated = 8 + int.from_bytes(head[4:8], "little")
    elif (at := head.find(_ASF_PROPERTIES)) >= 0 and head[:1] == b"0":
        at += len(_ASF_PROPERTIES) + 24
        # Then come creation date, number of packets, two durations, preroll (8 each) and flags: bit 0, a broadcast.
        flags = head[at + 48 : at + 49]
        stated = int.from_bytes(head[at : at + 8], "little") if flags and not flags[0] & 1 else 0
    return size_of(source) < stated < 1 << 62
