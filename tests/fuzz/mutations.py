"""Seeded damage to small valid files, and what each format's reader is allowed to make of it."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import save
from support.shards import encode_jpeg, make_picture, make_shards, make_waveform
from support.videos import write_video

from datasets.decode import DecodeError, decode_audio, decode_frame, decode_video
from datasets.shards.manifest import ShardIndex
from datasets.shards.scan import scan_shard
from datasets.shards.table import ClipTable
from datasets.shards.tar import ShardError
from models.weights.errors import WeightsError
from models.weights.tensor_files import read_file


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
    for kind in ("FLAC", "WAV", "OGG"):
        sound = io.BytesIO()
        soundfile.write(sound, make_waveform(0, 0.05), 16_000, format=kind)
        yield kind.lower(), Format([sound.getvalue()], decode_audio, (DecodeError,))
    for suffix in ("mp4", "mkv", "avi"):
        film = write_video(folder / f"film.{suffix}", seconds=0.3).read_bytes()
        yield suffix, Format([film], lambda data: decode_video(data, 2, [0, 1], 16), (DecodeError,))
    yield from _set_formats(folder)
    weights = {"a.weight": torch.ones(2, 3), "b": torch.zeros(4)}
    stored = io.BytesIO()
    torch.save({"model": weights, "epoch": 3}, stored)
    yield "pth", Format([stored.getvalue()], _through(folder / "w.pth", read_file), (WeightsError,))
    yield (
        "safetensors",
        Format([save(weights)], _through(folder / "w.safetensors", read_file), (WeightsError,)),
    )


def _set_formats(folder: Path) -> Iterator[tuple[str, Format]]:
    made = make_shards(folder / "set", 2, 2)
    for name, path, read in (
        ("tar", "shard-000000.tar", scan_shard),
        ("index", "index.json", lambda path: ShardIndex.load_file(path, str(path))),
        ("table", "index.table", ClipTable),
    ):
        content = (made / path).read_bytes()
        yield name, Format([content], _through(folder / path, read), (ShardError,))


def _through(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def call(data: bytes) -> object:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix) as file:
            file.write(data)
            file.flush()
            return read(Path(file.name))

    return call
