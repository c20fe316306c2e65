"""Mean and standard deviation of a set's log-mel values, with which its spectrograms are normalised."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from datasets.decode import SAMPLE_RATE, decode_audio
from datasets.index import FbankStats
from datasets.shards import BLOCK
from datasets.table import ClipTable, Extent

MEL_BINS = 128
FRAME_SHIFT_MS = 10.0
WINDOW_SECONDS = 0.025


class StoredClip(NamedTuple):
    """A clip's members as they lie in its shard.

    Attributes:
        id: Its id.
        labels: Its class ids.
        sound: The sound file's bytes; empty where it has none.
        frames: The pictures' bytes in order.
    """

    id: str
    labels: tuple[int, ...]
    sound: bytes
    frames: list[bytes]


def read_clips(folder: Path, table: ClipTable, rows: Sequence[int]) -> Iterator[StoredClip]:
    """The stored bytes of some clips, in the order asked for."""
    for row in rows:
        members = table.members(row)
        with open(folder / table.shards[table.shard_of(row)], "rb") as file:
            sound = next((_read(file, members[slot]) for slot in table.audio_slots if slot in members), b"")
            frames = [_read(file, members[slot]) for slot in table.frame_slots if slot in members]
        yield StoredClip(table.id(row), table.labels(row), sound, frames)


def _read(file: BinaryIO, extent: Extent) -> bytes:
    file.seek(extent.offset)
    data = file.read((1 + extent.blocks) * BLOCK)
    size = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape").size
    return data[BLOCK : BLOCK + size]


def spread_rows(num_rows: int, count: int) -> list[int]:
    """Up to ``count`` rows, evenly spread."""
    count = min(count, num_rows)
    return [i * num_rows // count for i in range(count)]


def log_mel(waveform: Tensor) -> Tensor:
    """(T, 128) Kaldi log-mel of a (S,) int16 waveform at 16 kHz, with the settings of the published models.

    Source: AST, AudioMAE and CAV-MAE: mean subtracted, 25 ms Hann window, 10 ms shift, no dither, no energy.
    """
    samples = waveform.to(torch.float32) / 32768
    return kaldi.fbank(
        (samples - samples.mean())[None],
        htk_compat=True,
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
        dither=0.0,
        frame_shift=FRAME_SHIFT_MS,
    )


def measure_fbank(folder: Path, table: ClipTable, num_clips: int) -> FbankStats | None:
    """Measures mean and standard deviation over all log-mel values of up to ``num_clips`` clips.

    The clips are evenly spread over the set, each at its true length (no padding). None where the set has no
    sound.
    """
    count, total, squares, clips = 0, 0.0, 0.0, 0
    for clip in read_clips(folder, table, spread_rows(len(table), num_clips)):
        if not clip.sound:
            continue
        waveform = decode_audio(clip.sound)
        if len(waveform) < WINDOW_SECONDS * SAMPLE_RATE:
            continue
        values = log_mel(waveform).double()
        count += values.numel()
        total += values.sum().item()
        squares += values.square().sum().item()
        clips += 1
    if not clips:
        return None
    mean = total / count
    return FbankStats(round(mean, 6), round(max(squares / count - mean * mean, 0.0) ** 0.5, 6), clips)
