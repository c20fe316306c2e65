"""Pictures, sounds and films inside a page: small, each once, within the bytes that the page may have."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from datasets.decode import SAMPLE_RATE, DecodeError
from datasets.guard import Guard
from datasets.media.bounds import check_picture, png_size
from datasets.untrusted import read_bounded

#: A sound on the page is cut to so many seconds.
_LONGEST_SOUND = 12
_BIT_RATE = 24_000
#: Samples in a block of Opus: 20 ms.
_BLOCK = SAMPLE_RATE // 50
_LARGEST_PICTURE = 1 << 25
#: Sides of pictures in the page, at most.
_WIDEST = 1000


@dataclass
class Media:
    """What a page holds of pictures, sounds and films.

    Attributes:
        limit: Bytes in all, as they stand in the page.
        prefix: Of names.
        uris: ``data:`` URIs by name.
        left_out: How many did not fit.
        used: Bytes so far.
    """

    limit: int
    prefix: str = "m"
    uris: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    used: int = 0

    def add(self, kind: str, content: bytes) -> str | None:
        """Takes something in.

        Args:
            kind: Its media type.
            content: The file.

        Returns:
            Its name in the page, or None where it does not fit any more.
        """
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if self.used + len(uri) > self.limit:
            self.left_out += 1
            return None
        name = f"{self.prefix}{len(self.uris)}"
        self.used += len(uri)
        self.uris[name] = uri
        return name

    def picture(self, pixels: Tensor, side: int | None = None) -> str | None:
        """(3, H, W) uint8 as JPEG, its longer side at most ``side``."""
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((side or _WIDEST, side or 4 * _WIDEST))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82)
        return self.add("image/jpeg", buffer.getvalue())

    def sound(self, waveform: Tensor) -> str | None:
        """(S,) int16 at 16 kHz as Opus."""
        return self.add("audio/webm", opus(waveform))

    def png(self, path: Path) -> str | None:
        """A PNG file, as JPEG.

        Raises:
            ValueError: It is none, or too large.
            OSError: It can't be read.
        """
        return self.picture(_READ_PNG(path))

    def film(self, path: Path) -> str | None:
        """An MP4 file as it is.

        Raises:
            ValueError: It is none.
            OSError: It can't be read.
        """
        content = read_bounded(path, self.limit)
        if content[4:8] != b"ftyp":
            raise ValueError("it is no MP4")
        return self.add("video/mp4", content)


def read_png(path: Path) -> Tensor:
    """(3, H, W) uint8 of a PNG file.

    Raises:
        ValueError: It is none, or too large.
        OSError: It can't be read.
    """
    data = bytearray(read_bounded(path, _LARGEST_PICTURE))
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise DecodeError("it is no PNG")
    check_picture(*png_size(data))
    try:
        return decode_png(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise DecodeError(f"it can't be decoded: {error}") from error


#: A decoder that dies of a damaged picture costs that picture.
_READ_PNG = Guard(read_png)


def opus(waveform: Tensor) -> bytes:
    """(S,) int16 at 16 kHz as Opus in WebM, at most 12 s of it."""
    samples = waveform[: _LONGEST_SOUND * SAMPLE_RATE].numpy()
    padded = np.zeros(max(1, -(-len(samples) // _BLOCK)) * _BLOCK, np.int16)
    padded[: len(samples)] = samples
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = _BIT_RATE
        for start in range(0, len(padded), _BLOCK):
            block = av.AudioFrame.from_ndarray(padded[None, start : start + _BLOCK], "s16", "mono")
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return buffer.getvalue()
