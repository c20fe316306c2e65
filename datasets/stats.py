"""What is in a prepared set: classes, durations, loudness, and a picture of what the model will see.

    python -m datasets.stats OUT [--clips 500] [--sheet FILE.png]

The contact sheet shows some clips, evenly spread over the set: frames cut to the model's square over the
normalised log-mel spectrogram, low frequencies at the bottom, with the clip's true length on a common time
axis.
"""

from __future__ import annotations

import argparse
import math
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datasets.check import print_table
from datasets.decode import SAMPLE_RATE, DecodeError, decode_audio, decode_frame, decode_video
from datasets.fbank import MEL_BINS, log_mel, spread_rows
from datasets.index import FbankStats, Label, ShardIndex
from datasets.output import finished_sets
from datasets.shards import BLOCK, ShardError
from datasets.table import ClipTable, Extent

SHEET_NAME = "contact_sheet.png"

_SIDE = 112  # of a frame on the sheet, in pixels
_FRAMES = 4
_COLUMNS = 3
_AXIS_SECONDS = 10.0  # of spectrograms where no clip says how long it is
_MARGIN = 12
_CAPTION = 30
_BAR = 40  # characters of the longest bar of a histogram
_COLOURS = np.array(  # dark to bright, in even steps
    [(0, 0, 4), (60, 15, 110), (130, 35, 125), (200, 65, 100), (245, 125, 75), (252, 253, 191)], np.float32
)


class Loudness(NamedTuple):
    """Level of a clip's sound in dB of full scale: its root mean square, and its highest sample."""

    rms: float
    peak: float


class StoredClip(NamedTuple):
    """A clip's members as they lie in its shard.

    Attributes:
        id: Its id.
        labels: Its class ids.
        sound: The sound file's bytes; empty where it has none.
        frames: The pictures' bytes in order.
        video: The bytes of a video file; empty where it has none.
    """

    id: str
    labels: tuple[int, ...]
    sound: bytes
    frames: list[bytes]
    video: bytes

    def waveform(self) -> Tensor | None:
        """(S,) int16 at 16 kHz; None where there is no sound."""
        if self.sound:
            return decode_audio(self.sound)
        return decode_video(self.video, 1, [], _SIDE)[0] if self.video else None

    def pictures(self) -> list[Tensor]:
        """Up to ``_FRAMES`` evenly spread frames, (3, _SIDE, _SIDE) uint8 each."""
        if self.frames or not self.video:
            chosen = spread_rows(len(self.frames), _FRAMES)
            return [decode_frame(bytearray(self.frames[i]), _SIDE) for i in chosen]
        frames = decode_video(self.video, _FRAMES, range(_FRAMES), _SIDE)[1]
        return [] if frames is None else list(frames)


def read_clips(folder: Path, table: ClipTable, rows: Sequence[int]) -> Iterator[StoredClip]:
    """The stored bytes of some clips, in the order asked for."""
    for row in rows:
        members = table.members(row)
        with open(folder / table.shards[table.shard_of(row)], "rb") as file:

            def read(slots: Sequence[int], file=file, members=members) -> list[bytes]:
                return [_read(file, members[slot]) for slot in slots if slot in members]

            sound, video = (b"".join(read(slots)[:1]) for slots in (table.audio_slots, table.video_slots))
            yield StoredClip(table.id(row), table.labels(row), sound, read(table.frame_slots), video)


def _read(file: BinaryIO, extent: Extent) -> bytes:
    file.seek(extent.offset)
    data = file.read((1 + extent.blocks) * BLOCK)
    size = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "surrogateescape").size
    return data[BLOCK : BLOCK + size]


def measure_loudness(folder: Path, table: ClipTable, num_clips: int) -> tuple[list[Loudness], list[str]]:
    """Levels of up to ``num_clips`` clips, evenly spread over the set, and what could not be decoded."""
    levels, failures = [], []
    for clip in read_clips(folder, table, spread_rows(len(table), num_clips)):
        try:
            sound = clip.waveform()
        except DecodeError as error:
            failures.append(f"{clip.id}: {error}")
            continue
        if sound is not None:
            samples = sound.numpy().astype(np.float64) / 32768
            levels.append(Loudness(_decibels(math.sqrt((samples**2).mean())), _decibels(abs(samples).max())))
    return levels, failures


def _decibels(level: float) -> float:
    return 20 * math.log10(max(level, 1e-6))


def contact_sheet(folder: Path, index: ShardIndex, table: ClipTable, num_clips: int) -> Image.Image:
    """A picture of ``num_clips`` clips, evenly spread over the set.

    Args:
        folder: The set's folder.
        index: Its index; gives the classes' names and the normalisation.
        table: Its table.
        num_clips: How many clips to show.
    """
    clips = list(read_clips(folder, table, spread_rows(len(table), num_clips)))
    seconds = float(np.median(table.durations[:100_000])) or _AXIS_SECONDS
    cells = [_cell(clip, index.labels, index.fbank, max(seconds, 1.0)) for clip in clips]
    width, height = cells[0].size
    rows = math.ceil(len(cells) / _COLUMNS)
    columns = min(_COLUMNS, len(cells))
    size = (columns * (width + _MARGIN) + _MARGIN, rows * (height + _MARGIN) + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    for i, cell in enumerate(cells):
        row, column = divmod(i, _COLUMNS)
        sheet.paste(cell, (_MARGIN + column * (width + _MARGIN), _MARGIN + row * (height + _MARGIN)))
    return sheet


def _cell(clip: StoredClip, labels: Sequence[Label], fbank: FbankStats | None, seconds: float) -> Image.Image:
    """One clip: caption, frames, spectrogram."""
    width = _FRAMES * _SIDE
    cell = Image.new("RGB", (width, _CAPTION + _SIDE + MEL_BINS), (235, 235, 235))
    draw = ImageDraw.Draw(cell)
    draw.text((2, 1), _plain(clip.id, 70), fill="black")
    draw.text((2, 15), _plain(", ".join(labels[i].name for i in clip.labels), 70), fill=(90, 90, 90))
    try:
        pictures, waveform = clip.pictures(), clip.waveform()
    except DecodeError as error:
        draw.text((2, _CAPTION), _plain(str(error), 70), fill="red")
        return cell
    for i, picture in enumerate(pictures):
        cell.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (i * _SIDE, _CAPTION))
    if waveform is not None:
        cell.paste(_spectrogram(waveform, fbank, seconds, width), (0, _CAPTION + _SIDE))
    return cell


def _spectrogram(waveform: Tensor, fbank: FbankStats | None, seconds: float, width: int) -> Image.Image:
    """The normalised log-mel, low frequencies at the bottom; grey where the clip has ended."""
    values = log_mel(waveform)
    mean, std = (fbank.mean, fbank.std) if fbank else (values.mean().item(), values.std().item())
    # From two standard deviations below the mean to two above it.
    shades = (((values - mean) / max(std, 1e-6) + 2.0) / 4.0).clamp(0, 1).T.flip(0).numpy()
    steps = np.arange(len(_COLOURS))
    channels = [np.interp(shades * (len(_COLOURS) - 1), steps, _COLOURS[:, c]) for c in range(3)]
    picture = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    shown = min(max(round(width * len(waveform) / SAMPLE_RATE / seconds), 1), width)
    if len(waveform) > seconds * SAMPLE_RATE:
        picture = picture.crop((0, 0, round(picture.width * seconds * SAMPLE_RATE / len(waveform)), MEL_BINS))
    canvas = Image.new("RGB", (width, MEL_BINS), (200, 200, 200))
    canvas.paste(picture.resize((shown, MEL_BINS), Image.Resampling.BILINEAR), (0, 0))
    return canvas


def _plain(text: str, length: int) -> str:
    """Text that the built-in font can draw."""
    return text.encode("latin-1", "replace").decode("latin-1")[:length]


def print_stats(folder: Path, index: ShardIndex, table: ClipTable, num_clips: int) -> None:
    """Prints class balance, durations and loudness."""
    hours, size = index.duration_seconds / 3600, index.bytes / 1e9
    print(f"{folder}: {index.samples} clips, {hours:.2f} h, {size:.3f} GB")
    if index.fbank:
        print(f"fbank mean {index.fbank.mean:.4f}, std {index.fbank.std:.4f} ({index.fbank.clips} clips)")
    if index.labels:
        _print_classes(index, table)
    print("\nduration in seconds")
    if index.duration_seconds:
        _print_histogram(np.asarray(table.durations, np.float64))
    else:
        print("  not known: the shards' metadata give none")
    levels, failures = measure_loudness(folder, table, num_clips)
    if failures:
        print(f"\n{len(failures)} clips can't be decoded, such as {failures[0]}")
    if levels:
        print(f"\nloudness of {len(levels)} clips: root mean square in dB of full scale")
        _print_histogram(np.array([level.rms for level in levels]))
        clipped = sum(level.peak > -0.01 for level in levels)
        print(f"  at full scale somewhere: {clipped} clips ({clipped / len(levels):.1%})")


def _print_classes(index: ShardIndex, table: ClipTable) -> None:
    counts = np.array([label.count for label in index.labels])
    present = counts[counts > 0]
    per_clip = len(table.label_ids) / max(len(table), 1)
    print(f"\nclasses: {len(present)} of {len(counts)} have clips, {per_clip:.2f} labels a clip")
    if not len(present):
        return
    print(f"  clips a class: fewest {present.min()}, median {np.median(present):g}, most {present.max()}")
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    shown = order if len(order) <= 16 else [*order[:10], *order[-5:]]
    rows = [
        (f"  {index.labels[i].name[:40]}", str(counts[i]), _bar(counts[i] / counts.max()).ljust(_BAR))
        for i in shown
    ]
    print_table(rows)


def _print_histogram(values: np.ndarray, bins: int = 8) -> None:
    low, high = float(values.min()), float(values.max())
    quartiles = np.percentile(values, [5, 50, 95])
    print("  5 %, half and 95 % lie below {:.2f}, {:.2f} and {:.2f}".format(*quartiles))
    if high - low < 0.01:
        return
    counts, edges = np.histogram(values, bins)
    rows = [
        (
            f"  {edges[i]:8.2f} to {edges[i + 1]:8.2f}",
            str(counts[i]),
            _bar(counts[i] / counts.max()).ljust(_BAR),
        )
        for i in range(bins)
    ]
    print_table(rows)


def _bar(share: float) -> str:
    return "#" * max(round(share * _BAR), 1 if share else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.stats``."""
    parser = argparse.ArgumentParser(prog="python -m datasets.stats", description="Describe prepared shards.")
    parser.add_argument("out", type=Path, help="folder with an index.json, or with a folder for each split")
    parser.add_argument("--clips", type=int, default=500, help="clips on which loudness is measured")
    parser.add_argument("--shown", type=int, default=12, help="clips on the contact sheet")
    parser.add_argument("--sheet", type=Path, help=f"where to write it; default: {SHEET_NAME} in each set")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folders = finished_sets(options.out) or [options.out]
    if options.sheet is not None and len(folders) > 1:
        parser.error(f"--sheet is one file for {len(folders)} splits; give the folder of one split")
    try:
        for folder in folders:
            index = ShardIndex.load(folder)
            table = ClipTable.open(folder, index.fingerprint)
            print_stats(folder, index, table, options.clips)
            path = options.sheet or folder / SHEET_NAME
            contact_sheet(folder, index, table, options.shown).save(path)
            print(f"\ncontact sheet: {path}\n")
    except ShardError as error:
        raise SystemExit(f"datasets.stats: {error}") from error


if __name__ == "__main__":
    main()
