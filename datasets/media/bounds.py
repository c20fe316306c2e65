"""How large a picture or sound may be, which is looked at before it is decoded.

A file of a few bytes may claim gigabytes. These bounds leave room for pictures of 50 megapixels, video of 8K and an
hour of sound, and keep one clip within about 2 GB.
"""

from __future__ import annotations

MAX_PIXELS = 50_000_000
MAX_SIDE = 32_768
MAX_SIDES_RATIO = 64
"""How much longer than wide a picture may be: its shorter side is brought to the model's size."""
MAX_CHANNELS = 64
MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_SAMPLES = 1 << 27
"""Of all channels together, where they are decoded at once."""
MAX_SECONDS = 14_400

_JPEG_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


class TooLargeError(ValueError):
    """A picture or sound beyond the bounds; the message says which."""


def check_picture(width: float, height: float) -> None:
    """Raises a `TooLargeError` unless a picture of this size may be decoded."""
    if min(width, height) < 1:
        raise TooLargeError(f"a picture of {width:g}×{height:g} pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise TooLargeError(
            f"a picture of {width:g}×{height:g} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS:,} in all are read"
        )
    if max(width, height) > MAX_SIDES_RATIO * min(width, height):
        raise TooLargeError(
            f"a picture of {width:g}×{height:g} pixels; one side may be {MAX_SIDES_RATIO} times the other"
        )


def check_sound(rate: float, channels: int, samples: int = 0) -> None:
    """Raises a `TooLargeError` unless a sound of this many samples a channel may be decoded."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise TooLargeError(f"a sound of {rate:g} Hz; {MIN_RATE} to {MAX_RATE} are read")
    if not 1 <= channels <= MAX_CHANNELS:
        raise TooLargeError(f"a sound of {channels} channels; 1 to {MAX_CHANNELS} are read")
    if samples * channels > MAX_SAMPLES or samples > MAX_SECONDS * rate:
        raise TooLargeError(
            f"a sound of {samples / rate:,.0f} s in {channels} channels; at most {MAX_SECONDS:,} s and "
            f"{MAX_SAMPLES:,} samples are read at once"
        )


def jpeg_size(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Width and height of a JPEG by its frame header.

    Raises:
        ValueError: It has none, or its segments don't follow each other.
    """
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("its JPEG segments do not follow each other")
        kind = data[at + 1]
        if kind == 0xFF:  # filling
            at += 1
        elif kind in _JPEG_START_OF_FRAME:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        elif kind == 0x01 or 0xD0 <= kind <= 0xD7:
            at += 2
        elif kind in (0xD8, 0xD9, 0xDA):
            break
        else:
            at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
    raise ValueError("it has no JPEG frame header")


def png_size(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Width and height of a PNG by its header.

    Raises:
        ValueError: It has none.
    """
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise ValueError("it has no PNG header")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
