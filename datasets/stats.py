"""What is in a prepared set: classes, durations, loudness, and a picture of what the model will see.

    python -m datasets.stats OUT [--clips 500] [--sheet FILE.png]

See ``datasets.inspect.contact_sheet`` for what the picture shows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from atomic import check_writable, replacing
from datasets.console import print_table, quiet_end
from datasets.decode import DecodeError
from datasets.inspect.contact_sheet import contact_sheet
from datasets.inspect.stored_clips import ClipViewer
from datasets.prepare.fbank_stats import spread_rows
from datasets.prepare.shard_output import finished_sets
from datasets.shards.manifest import ShardIndex
from datasets.shards.table import ClipTable
from home_paths import command_line
from terminal import show_control_characters

SHEET_NAME = "contact_sheet.png"

_BAR = 40  # characters of the longest bar of a histogram


class Loudness(NamedTuple):
    """Level of a clip's sound in dB of full scale: its root mean square, and its highest sample."""

    rms: float
    peak: float


def measure_loudness(folder: Path, table: ClipTable, num_clips: int) -> tuple[list[Loudness], list[str]]:
    """Levels of up to ``num_clips`` clips, evenly spread over the set, and what could not be decoded."""
    levels, failures = [], []
    with closing(ClipViewer(folder, table)) as viewer:
        for row in spread_rows(len(table), num_clips):
            try:
                sound = viewer.see(row).waveform
            except DecodeError as error:
                failures.append(f"{table.id(row)}: {error}")
                continue
            if sound is not None:
                samples = sound.numpy().astype(np.float64) / 32768
                levels.append(
                    Loudness(_decibels(math.sqrt((samples**2).mean())), _decibels(abs(samples).max()))
                )
    return levels, failures


def _decibels(level: float) -> float:
    return 20 * math.log10(max(level, 1e-6))


def print_stats(folder: Path, index: ShardIndex, table: ClipTable, num_clips: int) -> None:
    """Prints class balance, durations and loudness."""
    hours, size = index.duration_seconds / 3600, index.bytes / 1e9
    print(f"{folder}: {index.samples} clips, {hours:.2f} h, {size:.3f} GB")
    if index.fbank:
        print(f"fbank mean {index.fbank.mean:.4f}, std {index.fbank.std:.4f} ({index.fbank.clips} clips)")
    if index.rejects is not None and index.rejects.total:
        print(index.rejects)
    parts = {"sound": table.num_with_audio, "frames": table.num_with_frames, "text": table.num_with_text}
    if parts["text"] or min(parts["sound"], parts["frames"]) < len(table):
        print("clips with " + ", ".join(f"{what} {count}" for what, count in parts.items()))
    if index.labels:
        _print_classes(index, table)
    print("\nduration in seconds")
    durations = np.asarray(table.durations, np.float64)
    known = durations[durations > 0]
    if len(known):
        _print_histogram(known)
    if (unknown := parts["sound"] - len(known)) > 0:  # what has no sound has no duration
        print(f"  not known of {unknown} clips: the shards' metadata give none")
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


@quiet_end()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.stats``."""
    show_control_characters()
    parser = argparse.ArgumentParser(prog="python -m datasets.stats", description="Describe prepared shards.")
    parser.add_argument("out", type=Path, help="folder with an index.json, or with a folder for each split")
    parser.add_argument("--clips", type=int, default=500, help="clips on which loudness is measured")
    parser.add_argument("--shown", type=int, default=12, help="clips on the contact sheet")
    parser.add_argument("--sheet", type=Path, help=f"where to write it; default: {SHEET_NAME} in each set")
    options = parser.parse_args(command_line(arguments))
    if options.clips < 1 or options.shown < 1:
        parser.error("--clips and --shown must be at least 1")
    torch.set_num_threads(1)
    folders = finished_sets(options.out) or [options.out]
    if options.sheet is not None and len(folders) > 1:
        parser.error(f"--sheet is one file for {len(folders)} splits; give the folder of one split")
    try:
        for folder in folders:
            index = ShardIndex.load(folder)
            table = ClipTable.of(index, folder)
            print_stats(folder, index, table, options.clips)
            path = options.sheet or folder / SHEET_NAME
            check_writable(path.parent)
            sheet = contact_sheet(folder, index, table, options.shown)
            with replacing(path) as file:
                sheet.save(file, "PNG")
            print(f"\ncontact sheet: {path}\n")
    except (ValueError, OSError) as error:
        raise SystemExit(f"datasets.stats: {error}") from error


if __name__ == "__main__":
    main()
