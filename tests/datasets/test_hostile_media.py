"""Pictures, sounds and videos made to harm: claims of gigabytes, formats under false names, files that open others."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from PIL import Image
from support.shards import encode_jpeg, make_picture, make_waveform
from support.videos import _picture_stream, write_video

from datasets.decode import DecodeError, decode_audio, decode_frame, decode_video
from datasets.media.container import MediaError, read_media, read_sound
from datasets.media.length import media_length


def gif(canvas: int, left: int, side: int) -> bytes:
    """A GIF of one frame at (left, left); where it reaches beyond the canvas torchvision wrote past its memory."""
    bits = "".join(f"{code:03b}"[::-1] for _ in range(side * side) for code in (4, 1)) + "101"
    codes = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    blocks = b"".join(
        bytes([len(codes[i : i + 255])]) + codes[i : i + 255] for i in range(0, len(codes), 255)
    )
    head = b"GIF89a" + struct.pack("<HHBBB", canvas, canvas, 0x91, 0, 0) + bytes(range(12))
    frame = b"\x2c" + struct.pack("<HHHHB", left, left, side, side, 0)
    return head + frame + b"\x02" + blocks + b"\0;"


def saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_picture(0, 0, (16, 16))).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data", [gif(8, 0, 8), gif(8, 4, 8), saved("WEBP"), saved("BMP"), saved("EPS"), b"<svg/>"],
    ids=["gif", "gif beyond its canvas", "webp", "bmp", "eps", "svg"],
)  # fmt: skip
def test_only_jpeg_and_png_reach_a_decoder_whatever_a_files_name(data: bytes) -> None:
    with pytest.raises(DecodeError, match="neither JPEG nor PNG"):
        decode_frame(bytearray(data), 16)


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes don't hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, filling: bytes = b"") -> bytes:
    """A JPEG whose frame header claims another size than it has."""
    data = encode_jpeg(make_picture(0, 0, (16, 16)))
    at = data.index(b"\xff\xc0")
    data = data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
    return data[:2] + filling + data[2:]


@pytest.mark.parametrize("make", [png, jpeg])
@pytest.mark.parametrize("size", [(50_000, 50_000), (40_000, 1), (1, 40_000), (8_000, 8_000), (3_000, 30)])
def test_a_pictures_size_is_looked_at_before_it_is_decoded(make, size: tuple[int, int]) -> None:
    with pytest.raises(DecodeError, match=rf"a picture of {size[0]:g}×{size[1]:g} pixels"):
        decode_frame(bytearray(make(*size)), 16)


@pytest.mark.parametrize(
    "filling", [b"\xff\xff", b"\xff\xe0\x00\x04ab", b"\xff\x01"], ids=["fill", "app", "tem"]
)
def test_the_size_is_found_behind_other_segments(filling: bytes) -> None:
    with pytest.raises(DecodeError, match="a picture of 50000×50000 pixels"):
        decode_frame(bytearray(jpeg(50_000, 50_000, filling)), 16)


def wav(rate: int, channels: int = 1, samples: int = 1000, bits: int = 16) -> bytes:
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits)
    data = bytes(samples * block)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("data", [wav(0), wav(1), wav(2_000_000_000), wav(16_000, channels=1000, samples=10)])
def test_a_sounds_rate_and_channels_are_looked_at_before_it_is_decoded(data: bytes) -> None:
    with pytest.raises(DecodeError, match="sound can't be decoded"):
        decode_audio(data)


def flac(rate: int | None = None, samples: int | None = None) -> bytes:
    """A FLAC of a second whose header claims another rate or number of samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, make_waveform(0, 1.0), 16_000, format="FLAC")
    data = bytearray(buffer.getvalue())
    head = int.from_bytes(data[18:26], "big")
    if rate is not None:
        head = head & ((1 << 44) - 1) | rate << 44
    if samples is not None:
        head = head & ~((1 << 36) - 1) | samples
    data[18:26] = head.to_bytes(8, "big")
    return bytes(data)


def test_what_a_flac_claims_is_bounded() -> None:
    with pytest.raises(DecodeError, match="a sound of 0 Hz"):
        decode_audio(flac(rate=0))
    with pytest.raises(DecodeError, match=r"a sound of 4,294,967 s"):
        decode_audio(flac(samples=(1 << 36) - 16))
    assert len(decode_audio(flac(samples=0))) == 16_000  # not known: legal


def test_a_flac_is_read_as_far_as_its_header_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 3 MB that said 16,000 samples gave 800 million."""
    whole = decode_audio(flac())
    assert torch.equal(decode_audio(flac(samples=5_000)), whole[:5_000])
    monkeypatch.setattr("datasets.decode._FLAC_PIECE", 3_000)
    assert torch.equal(decode_audio(flac()), whole)
    assert torch.equal(decode_audio(flac(samples=5_000)), whole[:5_000])
    with pytest.raises(DecodeError, match="it ends after 16000 of 17000 samples"):
        decode_audio(flac(samples=17_000))


def test_a_flac_that_unfolds_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence packs a thousand to one, and a header may leave its length open."""
    monkeypatch.setattr("datasets.media.bounds.MAX_SAMPLES", 100_000)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(200_000, np.int16), 16_000, format="FLAC")
    data = bytearray(buffer.getvalue())
    for stated in (200_000, 0):
        data[21:26] = (int.from_bytes(data[21:26], "big") & ~((1 << 36) - 1) | stated).to_bytes(5, "big")
        with pytest.raises(DecodeError, match="100,000 samples are read at once"):
            decode_audio(bytes(data))


def test_an_odd_rate_takes_no_giant_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """44,099 and 16,000 share no factor: torchaudio's filter would hold 700 million numbers."""

    def refuse(*args: object) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(torchaudio.functional, "resample", refuse)
    time = np.arange(44_099) / 44_099
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * 440 * time), 44_099, format="WAV")
    decoded = decode_audio(buffer.getvalue()).numpy()
    assert len(decoded) == 16_000
    expected = 16_384 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(decoded - expected)[200:-200].max() < 100


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4")


@pytest.mark.parametrize("aspect", [(2_147_483_647, 1), (1, 2_147_483_647), (1000, 1)])
def test_a_pixels_shape_is_bounded(
    tmp_path: Path, aspect: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def oblong(*args: Any) -> Any:
        stream = _picture_stream(*args)
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        return stream

    monkeypatch.setattr("support.videos._picture_stream", oblong)
    content = write_video(tmp_path / "oblong.mp4").read_bytes()
    at = content.index(b"pasp") + 4
    content = content[:at] + struct.pack(">II", *aspect) + content[at + 8 :]
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"a picture of .* pixels"):
        read_media(path)


def test_files_that_name_other_files_are_not_opened(film: Path, tmp_path: Path) -> None:
    playlists = {
        "concat.mp4": f"ffconcat version 1.0\nfile {film}\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{film}\n#EXT-X-ENDLIST\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "text.mp4": "ansi art \x1b[31m" * 50,
    }
    for name, content in playlists.items():
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(MediaError, match="undecodable"):
            read_media(path)
        with pytest.raises(MediaError, match="undecodable"):
            read_sound(io.BytesIO(content.encode()))
        with pytest.raises(DecodeError):
            decode_video(content.encode(), 1, [0], 16)
        assert media_length(path) is None


def test_a_name_with_a_colon_is_a_name(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "pipe:0.mp4", "data:b.mp4", "subfile,,start,0,end,9,,:c.mp4"):
        Path(name).write_bytes(film.read_bytes())
        assert read_media(name).frames
