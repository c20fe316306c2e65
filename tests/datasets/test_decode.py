"""Pictures and sound of any kind that shards hold, and damaged ones."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageOps
from support.shards import encode_jpeg, make_picture, make_waveform
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from datasets.decode import DecodeError, decode_audio, decode_frame, decode_video, resize_and_crop


@pytest.mark.parametrize(
    "size", [(340, 256), (256, 340), (480, 270), (226, 224), (224, 224), (120, 90), (301, 225)]
)
def test_frames_equal_torchvision_on_pil(size):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    textured = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
    data = bytearray(encode_jpeg(textured))
    with Image.open(io.BytesIO(data)) as picture:
        resized = Resize(224, InterpolationMode.BICUBIC)(picture.convert("RGB"))
        expected = np.asarray(CenterCrop(224)(resized)).transpose(2, 0, 1).astype(int)
    assert np.abs(decode_frame(data, 224).numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA"])
def test_pngs_of_any_kind(kind):
    buffer = io.BytesIO()
    Image.fromarray(make_picture(3, 1, (40, 32))).convert(kind).save(buffer, "PNG")
    assert decode_frame(bytearray(buffer.getvalue()), 16).shape == (3, 16, 16)


@pytest.mark.parametrize("data", [b"", b"no picture", encode_jpeg(make_picture(0, 0, (64, 64)))[:600]])
def test_broken_pictures(data):
    with pytest.raises(DecodeError, match="picture can't be decoded"):
        decode_frame(bytearray(data), 16)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("FLAC", "PCM_16", 0),
        ("WAV", "PCM_16", 0),
        ("FLAC", "PCM_24", 1),
        ("WAV", "FLOAT", 1),
        ("OGG", "VORBIS", 3000),
    ],
)
def test_sound_formats(kind, subtype, tolerance):
    waveform = make_waveform(1, 0.5)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform / 32768, 16_000, format=kind, subtype=subtype)
    decoded = decode_audio(buffer.getvalue())
    assert decoded.dtype == torch.int16
    assert np.abs(decoded.numpy().astype(int) - waveform).max() <= tolerance


def test_mp3_that_does_not_say_how_long_it_is():
    waveform, buffer = make_waveform(1, 2.0), io.BytesIO()
    with av.open(buffer, "w", format="mp3", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", 16_000, layout="mono", format="s16p")
        frame = av.AudioFrame.from_ndarray(waveform[None], "s16p", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    data = buffer.getvalue()
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert file.frames > len(file.read())  # libsndfile guesses, and too high
    assert len(decode_audio(data)) == pytest.approx(32_000, abs=2500)


def test_other_rates_and_channels_become_16_khz_mono():
    time = np.arange(44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * time)
    buffer = io.BytesIO()
    soundfile.write(
        buffer, np.stack([0.5 * tone, 0.25 * tone], axis=1), 44_100, format="FLAC", subtype="PCM_16"
    )
    decoded = decode_audio(buffer.getvalue()).numpy() / 32768
    assert len(decoded) == 16_000
    expected = 0.375 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(decoded - expected)[200:-200].max() < 2e-3


@pytest.mark.parametrize("kind", ["FLAC", "WAV"])
def test_broken_sound(kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, make_waveform(1, 2.0), 16_000, format=kind, subtype="PCM_16")
    data = bytearray(buffer.getvalue())
    if kind == "FLAC":  # a WAV's samples hold no redundancy: any bytes are some sound
        with pytest.raises(DecodeError, match=r"sound is truncated: it ends after \d+ of 32000 samples"):
            decode_audio(data[: len(data) // 2])
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        with pytest.raises(DecodeError, match=r"sound is truncated: it ends after \d+ of 32000 samples"):
            decode_audio(data)
    for broken in (b"", b"no sound", bytes(data[:20])):
        with pytest.raises(DecodeError, match="sound"):
            decode_audio(broken)


def png(pixels: np.ndarray, colours: int) -> bytes:
    """A PNG of 16 bits a channel, (H, W, channels) uint16; ``colours`` is its colour type."""

    def part(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colours, 0, 0, 0)
    parts = [part(b"IHDR", head), part(b"IDAT", zlib.compress(rows)), part(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [32, 20])  # also where nothing has to be resized
@pytest.mark.parametrize(("colours", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_pngs_of_16_bits(colours: int, channels: int, side: int):
    picture = make_picture(3, 1, (40, 32)).astype(np.uint16) * 257
    deep = np.concatenate([picture, np.full((32, 40, 1), 30_000, np.uint16)], axis=2)
    deep = deep[:, :, {1: [2], 2: [2, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    shown = deep[:, :, :3] if channels >= 3 else np.repeat(deep[:, :, :1], 3, axis=2)
    expected = resize_and_crop(torch.from_numpy((shown // 257).astype(np.uint8)).permute(2, 0, 1), side)
    found = decode_frame(bytearray(png(deep, colours)), side)
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")]
)
def test_pictures_of_other_colours(mode: str, kind: str):
    picture = Image.fromarray(make_picture(3, 1, (40, 32))).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    with Image.open(buffer) as stored:
        expected = np.asarray(stored.convert("RGB"))
    found = decode_frame(bytearray(buffer.getvalue()), 32).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected[:, 4:36]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_are_turned_upright(orientation: int, kind: str):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16, :16], picture[:16, 16:], picture[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(buffer, kind, exif=exif, quality=95)
    with Image.open(buffer) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    found = decode_frame(bytearray(buffer.getvalue()), 32).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("error", [NotImplementedError, ZeroDivisionError, OverflowError, KeyError])
def test_whatever_a_decoder_raises_is_a_decode_error(monkeypatch, error: type[Exception]):
    def fail(*args, **kwargs):
        raise error("deep inside")

    for name in ("decode_jpeg", "read_media", "read_sound"):
        monkeypatch.setattr(f"datasets.decode.{name}", fail)
    monkeypatch.setattr("datasets.decode.miniaudio.flac_read_s16", fail)
    for call in (
        lambda: decode_frame(bytearray(encode_jpeg(make_picture(0, 0, (16, 16)))), 16),
        lambda: decode_audio(b"any"),
        lambda: decode_audio(b"fLaC"),
        lambda: decode_video(b"any", 1, [0], 16),
    ):
        with pytest.raises(DecodeError, match=r"can't be decoded: .*deep inside"):
            call()


@pytest.mark.parametrize("kind", ["RF64", "W64", "AIFF", "AU", "CAF", "WAV"])
def test_sound_cut_in_half(kind: str):
    buffer = io.BytesIO()
    soundfile.write(buffer, make_waveform(1, 4.0), 16_000, format=kind, subtype="PCM_16")
    data = buffer.getvalue()
    assert len(decode_audio(data)) == 64_000
    with pytest.raises(DecodeError, match="sound is truncated"):
        decode_audio(data[: len(data) // 2])
    assert 30_000 < len(decode_audio(data[: len(data) // 2], keep_truncated=True)) < 33_000
