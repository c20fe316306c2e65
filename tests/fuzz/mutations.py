"""Seeded damage to small valid files, and what each format's reader is allowed to make of it."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import save
from support.shards import encode_jpeg, make_picture, make_shards, make_waveform
from support.videos import write_video

from datasets.decode import DecodeError, decode_audio, decode_frame, decode_video
from datasets.prepare.labels import LabelFileError, read_label_file
from datasets.shards.manifest import ShardIndex
from datasets.shards.scan import scan_shard
from datasets.shards.table import ClipTable
from datasets.shards.tar import ShardError
from datasets.subtitles import SubtitleError, read_subtitles
from engine.embeddings import read_embeddings, write_embeddings
from models.weights.errors import WeightsError
from models.weights.tensor_files import read_file
from strict_yaml import load_yaml_file


class Format(NamedTuple):
    """A format: valid files to begin with, what reads one, and the errors in which that may end."""

    seeds: list[bytes]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]


def mutated(seed: bytes, number: int) -> bytes:
    """Damage number ``number``: bytes and numbers changed, parts cut out, doubled or moved, the end cut off."""
    random = np.random.default_rng(number)
    data = bytearray(seed)
    for _ in range(int(random.integers(1, 5))):
        if not data:
            break
        # Headers are where sizes stand: half of all damage goes to the first bytes.
        reach = min(len(data), 128) if random.random() < 0.5 else len(data)
        at, kind = int(random.integers(reach)), int(random.integers(6))
        length = int(random.integers(1, 1 + min(64, len(data) - at)))
        if kind == 0:
            data[at] = int(random.integers(256))
        elif kind == 1:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 2:
            extreme = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)[int(random.integers(5))]
            data[at : at + 4] = extreme.to_bytes(4, "big" if random.random() < 0.5 else "little")
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        else:
            del data[at + (len(data) - at) // 2 :]
    return bytes(data)


def formats(folder: Path) -> Iterator[tuple[str, Format]]:
    """All formats by name; ``folder`` takes what has to be a file."""
    picture = make_picture(0, 0, (24, 16))
    yield (
        "jpeg",
        Format([encode_jpeg(picture)], lambda data: decode_frame(bytearray(data), 16), (DecodeError,)),
    )
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    yield "png", Format([png.getvalue()], lambda data: decode_frame(bytearray(data), 16), (DecodeError,))
    for kind in ("GIF", "WEBP", "BMP", "TIFF", "PPM"):  # none of which may reach a decoder
        other = io.BytesIO()
        Image.fromarray(picture).save(other, kind)
        yield kind.lower(), Format([other.getvalue()], _refused_picture, ())
    for kind in ("FLAC", "WAV", "RF64", "W64", "OGG", "OPUS", "MP3", "AIFF", "AU", "CAF"):
        sound = io.BytesIO()
        container, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
        soundfile.write(sound, make_waveform(0, 0.05), 16_000, format=container, subtype=subtype)
        yield kind.lower(), Format([sound.getvalue()], decode_audio, (DecodeError,))
    for suffix in ("m4a", "aac"):
        sound = write_video(folder / f"sound.{suffix}", seconds=0, sound_seconds=0.3).read_bytes()
        yield suffix, Format([sound], decode_audio, (DecodeError,))
    for suffix in ("mp4", "mkv", "avi", "mov", "ts", "flv"):
        film = write_video(folder / f"film.{suffix}", seconds=0.3).read_bytes()
        yield suffix, Format([film], _film, (DecodeError,))
    for suffix, picture_codec, sound_codec in (
        ("webm", "libvpx", "libopus"),
        ("mpg", "mpeg1video", "mp2"),
        ("asf", "wmv2", "mp2"),
        ("mxf", "mpeg2video", "pcm_s16le"),
    ):
        film = _write_film(folder / f"film.{suffix}", picture_codec, sound_codec).read_bytes()
        yield suffix, Format([film], _film, (DecodeError,))
    yield from _set_formats(folder)
    yield from _text_formats(folder)
    weights = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}
    stored = io.BytesIO()
    torch.save({"model": weights, "epoch": 3}, stored)
    yield "pth", Format([stored.getvalue()], _through(folder / "w.pth", read_file), (WeightsError,))
    yield (
        "safetensors",
        Format([save(weights)], _through(folder / "w.safetensors", read_file), (WeightsError,)),
    )


def _film(data: bytes) -> object:
    return decode_video(data, 2, [0, 1], 16)


def _refused_picture(data: bytes) -> None:
    try:
        decode_frame(bytearray(data), 16)
    except DecodeError:
        return
    raise AssertionError("a picture of another kind was decoded")


def _write_film(path: Path, picture: str, sound: str) -> Path:
    """Some frames of noise and some silence in other codecs than `write_video`'s."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(picture, 25)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"  # type: ignore[union-attr]
        audio = container.add_stream(sound, 48_000, layout="mono")
        for _ in range(8):
            noise = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise)))  # type: ignore[arg-type]
        container.mux(video.encode(None))  # type: ignore[arg-type]
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 15_000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux([*audio.encode(frame), *audio.encode(None)])  # type: ignore[arg-type]
    return path


def _text_formats(folder: Path) -> Iterator[tuple[str, Format]]:
    rows = {
        "manifest": 'path,label,split,start,end\na.mp4,cat,train,0,1\nb.mp4,"dog,owl",val,0.5,2\n',
        "audioset": '# YTID, start_seconds, end_seconds, positive_labels\n-abc, 30.000, 40.000, "/m/01,/m/02"\n',
        "vggsound": '---g-f_I2yQ,1,"people marching",test\n',
    }
    for name, text in rows.items():
        yield name, Format([text.encode()], _through(folder / "rows.csv", _label_rows), (LabelFileError,))
    for suffix, said in (
        ("srt", "1\n00:00:01,000 --> 00:00:02,500\n<i>Good</i> evening\n"),
        ("vtt", "WEBVTT\n\n00:01.000 --> 00:02.500\nGood &amp; bad\n"),
    ):
        read = _through(folder / f"said.{suffix}", read_subtitles)
        yield suffix, Format([said.encode()], read, (SubtitleError,))
    config = b"data: {train: x}\na: &a {x: [1, 2.5e-3, true, ~]}\nb:\n  - *a\n  - <<: *a\n    y: 'z'\n"
    yield "yaml", Format([config], _through(folder / "c.yaml", load_yaml_file), (ValueError,))
    vectors = {"id": np.array(["a", "b"]), "audio": np.ones((2, 4), np.float32), "labels": np.eye(2)}
    buffer = io.BytesIO()
    np.savez(buffer, **vectors)
    yield "npz", Format([buffer.getvalue()], _through(folder / "v.npz", read_embeddings), (ValueError,))
    if importlib.util.find_spec("pyarrow"):
        target = folder / "v.parquet"
        write_embeddings(target, [vectors], ["cat", "dog"], {"model": "m"})
        content = target.read_bytes()
        yield "parquet", Format([content], _through(folder / "w.parquet", read_embeddings), (ValueError,))


def _label_rows(path: Path) -> list[object]:
    return list(read_label_file(path).rows())


def _set_formats(folder: Path) -> Iterator[tuple[str, Format]]:
    fields = b'{"id": "a/b", "labels": [1, 2], "duration": 1.5, "frame_times": [0.1, 1e0], "source": "x"}'
    yield "sample", Format([fields], _through(folder / "sample.tar", scan_shard, _in_tar), (ShardError,))
    made = make_shards(folder / "set", 2, 2)
    for name, path, read in (
        ("tar", "shard-000000.tar", scan_shard),
        ("index", "index.json", lambda path: ShardIndex.load_file(path, str(path))),
        ("table", "index.table", ClipTable),
    ):
        content = (made / path).read_bytes()
        yield name, Format([content], _through(folder / path, read), (ShardError,))


def _in_tar(metadata: bytes) -> bytes:
    """A shard of one sample with these fields."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo("0.json")
        member.size = len(metadata)
        tar.addfile(member, io.BytesIO(metadata))
    return content.getvalue()


def _through(
    path: Path, read: Callable[[Path], object], packed: Callable[[bytes], bytes] = bytes
) -> Callable[[bytes], object]:
    def call(data: bytes) -> object:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix) as file:
            file.write(packed(data))
            file.flush()
            return read(Path(file.name))

    return call
