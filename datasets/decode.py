"""From the bytes of a member to int16 sound and uint8 pictures.

Measured on one core for 10 s of FLAC at 16 kHz and a 340×256 JPEG of 25 kB: miniaudio's FLAC decoder 0.7 ms
(soundfile 1.25 ms, PyAV 1.8 ms); torchvision's JPEG decoder 0.26 ms (PIL a quarter more); torch's uint8
antialiased bicubic 0.18 ms (PIL 0.6 ms; torchvision's ``resize``, which goes through float, 0.95 ms), at
most one grey level from PIL's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import miniaudio
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from datasets.media.container import SAMPLE_RATE, MediaClip, MediaError, MediaSettings, read_media

_PREPARED_SIDE = 256  # shorter side to which a video's frames are brought first, as in prepared shards


class DecodeError(ValueError):
    """Bytes that are not the sound or picture which they should be."""


def decode_audio(data: bytes | bytearray | memoryview) -> Tensor:
    """Decodes a sound file (flac, wav, mp3, ogg).

    Returns:
        (S,) int16 at 16 kHz; the mean of its channels, resampled where it has another rate.

    Raises:
        DecodeError: It can't be decoded, holds fewer samples than its header says, or none.
    """
    try:
        samples, rate, expected = _read_flac(data) if data[:4] == b"fLaC" else _read_sound(data)
    except (miniaudio.DecodeError, soundfile.SoundFileError, RuntimeError) as error:
        # What libsndfile says, without the name of the object in memory that it read from.
        reason = getattr(error, "error_string", error)
        raise DecodeError(f"sound can't be decoded: {reason}") from error
    if len(samples) < max(expected, 1):
        raise DecodeError(f"sound ends after {len(samples)} of {expected} samples")
    if samples.dtype == np.int16 and samples.shape[1] == 1 and rate == SAMPLE_RATE:
        return torch.from_numpy(samples[:, 0])
    return _to_standard(samples, rate)


def _read_flac(data: bytes | bytearray | memoryview) -> tuple[NDArray[Any], int, int]:
    """(S, channels) int16 samples, rate, and the number of samples that the header promises."""
    sound = miniaudio.flac_read_s16(bytes(data))
    promised = int.from_bytes(data[18:26], "big") & ((1 << 36) - 1)  # of STREAMINFO; 0: not known
    return np.frombuffer(sound.samples, np.int16).reshape(-1, sound.nchannels), sound.sample_rate, promised


def _read_sound(data: bytes | bytearray | memoryview) -> tuple[NDArray[Any], int, int]:
    """The same of another format; float32 in [-1, 1] where it is not 16-bit PCM."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        kind = "int16" if file.subtype == "PCM_16" else "float32"
        samples = np.asarray(file.read(dtype=kind, always_2d=True))
        # An MP3 promises nothing: where an encoder wrote no Xing header the number is a guess from its size.
        return samples, file.samplerate, 0 if file.format == "MP3" else file.frames


def _to_standard(samples: NDArray[Any], rate: int) -> Tensor:
    mono = torch.from_numpy(samples).float().mean(dim=1)
    if samples.dtype != np.int16:
        mono *= 32768.0
    if rate != SAMPLE_RATE:
        mono = torchaudio.functional.resample(mono, rate, SAMPLE_RATE)
    return mono.round_().clamp_(-32768, 32767).to(torch.int16)


def decode_frame(data: bytearray | memoryview, image_size: int) -> Tensor:
    """Decodes a picture (jpg, png), and brings it to a square.

    Args:
        data: The file, in writable memory (torch borrows it).
        image_size: Side of the result in pixels.

    Returns:
        (3, image_size, image_size) uint8 RGB.

    Raises:
        DecodeError: It can't be decoded.
    """
    try:
        picture = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"picture can't be decoded: {str(error).splitlines()[0]}") from error
    return resize_and_crop(picture, image_size)


def resize_and_crop(picture: Tensor, image_size: int) -> Tensor:
    """Shorter side to ``image_size`` (bicubic, antialiased), then the centre square.

    Equal to torchvision's ``Resize`` and ``CenterCrop`` on a PIL image within one or two grey levels.

    Args:
        picture: (3, H, W) uint8.
        image_size: Side of the result in pixels.

    Returns:
        (3, image_size, image_size) uint8.
    """
    height, width = picture.shape[-2:]
    if min(height, width) != image_size:
        shorter = min(height, width)
        height, width = (image_size * side // shorter for side in (height, width))
        picture = F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0]
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return picture[:, top : top + image_size, left : left + image_size].contiguous()


def decode_video(
    data: bytes | bytearray | memoryview, num_frames: int, frame_indices: Sequence[int], image_size: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Decodes a video file with sound.

    Args:
        data: The file.
        num_frames: Into how many frames the clip is divided evenly.
        frame_indices: Which of them are wanted, in any order.
        image_size: Side of the frames in pixels.

    Returns:
        (S,) int16 sound at 16 kHz; (len(frame_indices), 3, image_size, image_size) uint8 frames, or None
        where no frame is wanted; and (len(frame_indices),) float32 seconds at which these are shown.

    Raises:
        DecodeError: The file gives no clip; says why.
    """
    wanted = sorted(set(frame_indices))
    settings = MediaSettings(SAMPLE_RATE, num_frames, max(_PREPARED_SIDE, image_size))
    try:
        clip: MediaClip = read_media(io.BytesIO(data), settings=settings, frame_indices=wanted)
    except (MediaError, MemoryError) as error:
        raise DecodeError(f"video can't be read: {error}") from error
    waveform = torch.from_numpy(clip.waveform)
    if not wanted:
        return waveform, None, torch.empty(0)
    times = dict(zip(wanted, clip.frame_times, strict=True))
    frames = {
        i: resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1), image_size)
        for i, frame in zip(wanted, clip.frames, strict=True)
    }
    return (
        waveform,
        torch.stack([frames[i] for i in frame_indices]),
        torch.tensor([times[i] for i in frame_indices]),
    )
