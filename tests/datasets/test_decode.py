"""Pictures and sound of any kind that shards hold, and damaged ones."""

import io

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.shards import encode_jpeg, make_picture, make_waveform
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from datasets.decode import DecodeError, decode_audio, decode_frame


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
        with pytest.raises(DecodeError, match=r"sound ends after \d+ of 32000 samples"):
            decode_audio(data[: len(data) // 2])
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        with pytest.raises(DecodeError, match=r"sound ends after \d+ of 32000 samples"):
            decode_audio(data)
    for broken in (b"", b"no sound", bytes(data[:20])):
        with pytest.raises(DecodeError, match="sound"):
            decode_audio(broken)
