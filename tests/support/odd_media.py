"""Media files whose right values are known: pictures that spell their number, sound whose pitch names the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

FPS = 25
RATE = 48_000
_BITS = 12  # 4 columns by 3 rows


def numbered(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8 whose blocks are the bits of ``number``."""
    blocks = np.array([235 if number >> bit & 1 else 16 for bit in range(_BITS)], np.uint8).reshape(3, 4)
    grey = np.kron(blocks, np.ones((height // 3, width // 4), np.uint8))
    return np.repeat(grey[:, :, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    """The number that a picture of any size spells."""
    height, width = picture.shape[:2]
    rows = [int((row + 0.5) * height / 3) for row in range(3)]
    columns = [int((column + 0.5) * width / 4) for column in range(4)]
    bits = [int(picture[row, column].mean() > 125) for row in rows for column in columns]
    return sum(value << bit for bit, value in enumerate(bits))


def tones(seconds: float, rate: int = RATE) -> np.ndarray:
    """(S,) float32: second s is a tone of 300 + 100 s Hz."""
    time = np.arange(round(seconds * rate)) / rate
    second = np.floor(time)
    return (0.4 * np.sin(2 * np.pi * (300 + 100 * second) * (time - second))).astype(np.float32)


def seconds_heard(waveform: np.ndarray, rate: int = 16_000) -> list[int]:
    """Which second of `tones` each whole second of a waveform is; -1 for none."""
    found = []
    for first in range(0, len(waveform) - rate // 2, rate):
        part = np.asarray(waveform[first : first + rate], np.float64)
        part = part[len(part) // 4 : 3 * len(part) // 4]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 8 * len(part)))
        pitch = np.argmax(spectrum) * rate / (8 * len(part))
        found.append(round((pitch - 300) / 100) if np.std(part) > 100 else -1)
    return found


def write_media(
    target: Path | str,
    seconds: float = 4.0,
    *,
    format: str | None = None,
    video: str | None = "mpeg4",
    audio: str | None = "aac",
    layout: str = "mono",
    rate: int = RATE,
    sample_format: str | None = None,
    pictures: Mapping[float, int] | None = None,
    first: int = 0,
    options: Mapping[str, str] | None = None,
    codec_options: Mapping[str, str] | None = None,
) -> Path:
    """Writes ``seconds`` of `numbered` pictures and `tones`.

    Args:
        target: The file.
        seconds: Its length.
        format: The container; None goes by the file's name.
        video: Codec of the picture; None for none.
        audio: Codec of the sound; None for none.
        layout: Of the sound's channels, which are all the same.
        rate: Of the sound, in Hz.
        sample_format: Of the sound; None for the codec's first.
        pictures: When which number comes up, where not 25 a second.
        first: Number of the first second in picture and sound, of a file that goes on with another.
        options: Of the container.
        codec_options: Of the sound's codec.
    """
    shown = pictures or {i / FPS: first * FPS + i for i in range(round(seconds * FPS))}
    with av.open(str(target), "w", format=format, options=dict(options or {})) as container:
        packets: list[av.Packet] = []
        picture = container.add_stream(video, rate=FPS) if video else None
        sound = (
            container.add_stream(audio, rate, layout=layout, options=dict(codec_options or {}))
            if audio
            else None
        )
        if isinstance(picture, av.VideoStream):
            picture.width, picture.height = 64, 48
            picture.pix_fmt = "yuvj420p" if video == "mjpeg" else "yuv420p"
            picture.codec_context.gop_size, picture.codec_context.max_b_frames = 12, 0
            picture.codec_context.time_base = Fraction(1, FPS)
            packets += encoded_pictures(picture, shown)
        if isinstance(sound, av.AudioStream):
            sound.bit_rate = 128_000
            packets += encoded_sound(sound, tones(first + seconds)[first * RATE :], sample_format)
        mux(container, packets)
    return Path(target)


def encoded_pictures(stream: av.VideoStream, shown: Mapping[float, int]) -> list[av.Packet]:
    """Packets of numbered pictures by when they come up."""
    packets = []
    for time, number in shown.items():
        frame = av.VideoFrame.from_ndarray(numbered(number, stream.height, stream.width)).reformat(
            format=stream.pix_fmt
        )
        frame.pts, frame.time_base = round(time * FPS), Fraction(1, FPS)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def encoded_sound(
    stream: av.AudioStream, samples: np.ndarray, sample_format: str | None = None
) -> list[av.Packet]:
    """Packets of (S,) float32 sound, the same on every channel."""
    channels = stream.layout.nb_channels
    planes = np.repeat(samples[None], channels, axis=0)
    block = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes.T).reshape(1, -1), "flt", stream.layout)
    block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
    if sample_format:
        stream.format = sample_format
    resampler = av.AudioResampler(
        stream.format, stream.layout, stream.rate, frame_size=stream.codec_context.frame_size or None
    )
    frames = [*resampler.resample(block), *resampler.resample(None)]
    return [packet for frame in [*frames, None] for packet in stream.encode(frame)]


def mux(container: OutputContainer, packets: Sequence[av.Packet]) -> None:
    """Writes packets of several streams in the order of their times."""
    for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * (packet.time_base or 0)):
        container.mux(packet)
