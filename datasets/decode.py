"""From the bytes of a member to int16 sound and uint8 pictures.

Measured on one core for 10 s of FLAC at 16 kHz and a 340×256 JPEG of 25 kB: miniaudio's FLAC decoder 0.7 ms
(soundfile 1.25 ms, PyAV 1.8 ms); torchvision's JPEG decoder 0.26 ms (PIL a quarter more); torch's uint8
antialiased bicubic 0.18 ms (PIL 0.6 ms; torchvision's ``resize``, which goes through float, 0.95 ms), at
most one grey level from PIL's.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, cast

import miniaudio
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from datasets.media.bounds import check_picture, check_sound, jpeg_size, png_size
from datasets.media.container import SAMPLE_RATE, MediaClip, MediaError, MediaSettings, read_media, read_sound
from datasets.media.headers import bytes_are_missing
from datasets.media.tracks import resampled

_UNKNOWN_SIZE = 0x7FFF_0000  # what programs write into a WAV of which they don't know the length is not below
_MAX_KERNEL = 1 << 23  # numbers in the filter by which torchaudio resamples
_FLAC_PIECE = 1 << 20  # samples of each channel
_PREPARED_SIDE = 256  # shorter side to which a video's frames are brought first, as in prepared shards


class DecodeError(ValueError):
    """Bytes that are not the sound or picture which they should be."""


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Whatever a decoder raises becomes a ``DecodeError``: libraries have errors of every kind for damaged files."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        # What libsndfile says, without the name of the object in memory that it read from.
        reason = getattr(error, "error_string", None) or str(error) or type(error).__name__
        raise DecodeError(f"{what} can't be decoded: {reason.splitlines()[0]}") from error


def decode_audio(data: bytes | bytearray | memoryview, keep_truncated: bool = False) -> Tensor:
    """Decodes a sound file: FLAC, WAV, or whatever else FFmpeg reads.

    Args:
        data: The file.
        keep_truncated: Take what is there of a sound that is shorter than its header says, or damaged.

    Returns:
        (S,) int16 at 16 kHz; the mean of its channels, resampled where it has another rate.

    Raises:
        DecodeError: It can't be decoded, holds fewer samples than its header says, or none.
    """
    with _decoding("sound"):
        if data[:4] == b"fLaC" and _flac_samples(data):
            samples, rate, expected = _read_flac(data)
        elif data[:4] in (b"RIFF", b"RIFX", b"RF64") and data[8:12] == b"WAVE":
            samples, rate, expected = _read_wav(data)
        elif data[:4] == b"OggS" and b"vorbis" in data[:64] and not bytes_are_missing(io.BytesIO(data)):
            # FFmpeg plays some samples before its beginning; libsndfile may read nothing of one that is cut off.
            samples, rate, expected = _read_sound(data)
        else:
            return _read_other(data, keep_truncated)
        if len(samples) < max(0 if keep_truncated else expected, 1):
            raise DecodeError(f"sound is truncated: it ends after {len(samples)} of {expected} samples")
        if samples.dtype == np.int16 and samples.shape[1] == 1 and rate == SAMPLE_RATE:
            return torch.from_numpy(samples[:, 0])
        return _to_standard(samples, rate)


def _read_flac(data: bytes | bytearray | memoryview) -> tuple[NDArray[Any], int, int]:
    """(S, channels) int16 samples, rate, and the number of samples that the header promises."""
    head, promised = int.from_bytes(data[18:26], "big"), _flac_samples(data)
    rate, channels = head >> 44, (head >> 41 & 7) + 1
    check_sound(rate, channels, promised)
    # In pieces: miniaudio's reading at once goes on behind what is promised, without end.
    kind, size = miniaudio.SampleFormat.SIGNED16, min(promised, _FLAC_PIECE)
    pieces, left = [np.empty((0, channels), np.int16)], promised
    with closing(miniaudio.stream_memory(bytes(data), kind, channels, rate, size)) as stream:
        for piece in stream:
            pieces.append(np.frombuffer(piece, np.int16).reshape(-1, channels)[:left])
            left -= len(pieces[-1])
            if not left:
                break
    return np.concatenate(pieces), rate, promised


def _flac_samples(data: bytes | bytearray | memoryview) -> int:
    """Samples a channel by STREAMINFO; 0 where that does not say."""
    return int.from_bytes(data[18:26], "big") & ((1 << 36) - 1)


def _read_wav(data: bytes | bytearray | memoryview) -> tuple[NDArray[Any], int, int]:
    """The same of a WAV; float32 in [-1, 1] where it is not 16-bit PCM."""
    place, stated = _data_size(data)
    there = len(data) - place
    if stated is None and there:  # written to a pipe: all that follows is sound
        data = bytearray(data)
        data[place - 4 : place] = there.to_bytes(4, "big" if data[:4] == b"RIFX" else "little")
    stated = there if stated is None else stated
    samples, rate, _ = _read_sound(data)
    # libsndfile takes what is there for what was promised.
    return samples, rate, -(-len(samples) * stated // max(there, 1)) if there < stated else len(samples)


def _read_sound(data: bytes | bytearray | memoryview) -> tuple[NDArray[Any], int, int]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        check_sound(file.samplerate, file.channels, file.frames)
        kind = "int16" if file.subtype == "PCM_16" else "float32"
        return np.asarray(file.read(dtype=kind, always_2d=True)), file.samplerate, file.frames


def _data_size(data: bytes | bytearray | memoryview) -> tuple[int, int | None]:
    """Where a WAV's samples begin, and how many bytes of them its header states; None where that is not known."""
    order = "big" if data[:4] == b"RIFX" else "little"
    at, long_size = 12, 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], order)
        if data[at : at + 4] == b"ds64":  # an RF64's sizes of file and samples, of 8 bytes each
            long_size = int.from_bytes(data[at + 16 : at + 24], order)
        if data[at : at + 4] == b"data":
            if size == 0xFFFF_FFFF and 0 < long_size < 1 << 62:
                return at + 8, long_size
            return at + 8, size if 0 < size < _UNKNOWN_SIZE else None
        at += 8 + size + size % 2
    return len(data), None


def _read_other(data: bytes | bytearray | memoryview, keep_truncated: bool) -> Tensor:
    try:
        clip = read_sound(io.BytesIO(data))
    except MediaError as error:
        raise DecodeError(f"sound can't be decoded: {error.detail}") from error
    _check_whole(clip, "sound", keep_truncated)
    return torch.from_numpy(clip.waveform)


def _check_whole(clip: MediaClip, what: str, keep_truncated: bool) -> None:
    if clip.truncated and not keep_truncated:
        raise DecodeError(
            f"{what} is truncated: damaged or cut off, {clip.duration:.3f} s of sound could be read"
        )


def _to_standard(samples: NDArray[Any], rate: int) -> Tensor:
    mono = torch.from_numpy(samples).float().mean(dim=1)
    if samples.dtype != np.int16:
        mono *= 32768.0
    if rate != SAMPLE_RATE:
        up, down = (value // math.gcd(rate, SAMPLE_RATE) for value in (SAMPLE_RATE, rate))
        if (
            up * (down + 12 * max(up, down) / min(up, SAMPLE_RATE)) > _MAX_KERNEL
        ):  # 44,099 Hz would take gigabytes
            return torch.from_numpy(resampled(mono.numpy() / 32768.0, rate, SAMPLE_RATE))
        mono = torchaudio.functional.resample(mono, rate, SAMPLE_RATE)
    return mono.round_().clamp_(-32768, 32767).to(torch.int16)


def decode_text(data: bytes | bytearray | memoryview) -> str:
    """Decodes what is said.

    Raises:
        DecodeError: It is no UTF-8.
    """
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"text is no UTF-8: {error.reason} at byte {error.start}") from error


def decode_picture(data: bytearray | memoryview) -> Tensor:
    """Decodes a picture (jpg, png) and turns it upright by its EXIF orientation.

    PNGs of 16 bits a channel are rounded to 8, palettes and grey values become RGB, transparency is left out.

    Args:
        data: The file, in writable memory (torch borrows it).

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        DecodeError: It can't be decoded.
    """
    with _decoding("picture"):
        if data[:3] == b"\xff\xd8\xff":
            size, decoder = jpeg_size(data), decode_jpeg
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            size, decoder = png_size(data), decode_png
        else:  # torchvision would look for a decoder of any kind, some of which can't be trusted
            raise DecodeError("picture can't be decoded: it is neither JPEG nor PNG, whatever its name")
        check_picture(*size)
        stored = torch.frombuffer(data, dtype=torch.uint8)
        picture = cast(Tensor, decoder(stored, mode=ImageReadMode.RGB, apply_exif_orientation=True))
        if picture.dtype == torch.uint16:
            picture = picture.to(torch.int32).add_(128).div_(257, rounding_mode="floor").to(torch.uint8)
        return picture


def decode_frame(data: bytearray | memoryview, image_size: int) -> Tensor:
    """`decode_picture`, brought to a square: (3, image_size, image_size) uint8 RGB; see there and `resize_and_crop`."""
    picture = decode_picture(data)
    with _decoding("picture"):
        return resize_and_crop(picture, image_size)


def resize_and_crop(picture: Tensor, image_size: int, *, nearest: bool = False) -> Tensor:
    """Shorter side to ``image_size`` (bicubic, antialiased), then the centre square.

    Equal to torchvision's ``Resize`` and ``CenterCrop`` on a PIL image within one or two grey levels.

    Args:
        picture: (C, H, W) uint8; of pictures, 3 channels.
        image_size: Side of the result in pixels.
        nearest: Take the nearest pixel, as labels need it.

    Returns:
        (C, image_size, image_size) uint8.
    """
    height, width = picture.shape[-2:]
    if min(height, width) != image_size:
        shorter = min(height, width)
        height, width = (image_size * side // shorter for side in (height, width))
        mode = "nearest-exact" if nearest else "bicubic"
        picture = F.interpolate(picture[None], (height, width), mode=mode, antialias=not nearest)[0]
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return picture[:, top : top + image_size, left : left + image_size].contiguous()


def decode_video(
    data: bytes | bytearray | memoryview,
    num_frames: int,
    frame_indices: Sequence[int],
    image_size: int,
    keep_truncated: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Decodes a video file with sound.

    Args:
        data: The file.
        num_frames: Into how many frames the clip is divided evenly.
        frame_indices: Which of them are wanted, in any order.
        image_size: Side of the frames in pixels.
        keep_truncated: Take what is there of a video that is damaged or cut off.

    Returns:
        (S,) int16 sound at 16 kHz; (len(frame_indices), 3, image_size, image_size) uint8 frames, or None
        where no frame is wanted; and (len(frame_indices),) float32 seconds at which these are shown.

    Raises:
        DecodeError: The file gives no clip; says why.
    """
    wanted = sorted(set(frame_indices))
    settings = MediaSettings(SAMPLE_RATE, num_frames, max(_PREPARED_SIDE, image_size))
    with _decoding("video"):
        try:
            clip = read_media(io.BytesIO(data), settings=settings, frame_indices=wanted)
        except (MediaError, MemoryError) as error:
            raise DecodeError(f"video can't be read: {error}") from error
        _check_whole(clip, "video", keep_truncated)
        waveform = torch.from_numpy(clip.waveform)
        if not wanted:
            return waveform, None, torch.empty(0)
        times = dict(zip(wanted, clip.frame_times, strict=True))
        frames = {
            i: resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1), image_size)
            for i, frame in zip(wanted, clip.frames, strict=True)
        }
        pictures = torch.stack([frames[i] for i in frame_indices])
        return waveform, pictures, torch.tensor([times[i] for i in frame_indices])
