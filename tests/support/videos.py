"""Small real MP4s, made in a few milliseconds each."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

SAMPLE_RATE = 16_000
FRAME_RATE = 10


def write_video(
    path: Path,
    *,
    seconds: float = 1.0,
    sound_seconds: float | None = None,
    level: float = 0.3,
    tone: float = 440.0,
    size: tuple[int, int] = (48, 32),
) -> Path:
    """Writes an H.264/AAC file: a moving gradient and a tone; for a length of 0, without that stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound_seconds = seconds if sound_seconds is None else sound_seconds
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = _picture_stream(container, size) if seconds else None
        audio = container.add_stream("aac", SAMPLE_RATE, layout="mono") if sound_seconds else None
        if video is not None:
            ramp = np.linspace(0, 255, size[0], dtype=np.float32)
            for i in range(round(seconds * FRAME_RATE)):
                row = np.roll(ramp, 3 * i + int(tone) % size[0]).astype(np.uint8)
                picture = np.broadcast_to(row[None, :, None], (size[1], size[0], 3))
                container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
            container.mux(video.encode())
        if audio is not None:
            time = np.arange(round(sound_seconds * SAMPLE_RATE)) / SAMPLE_RATE
            samples = (level * np.sin(2 * np.pi * tone * time)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def _picture_stream(container: OutputContainer, size: tuple[int, int]) -> av.VideoStream:
    stream = container.add_stream("libx264", FRAME_RATE, options={"preset": "ultrafast", "g": "5"})
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    return stream
