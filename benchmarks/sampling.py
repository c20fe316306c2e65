"""What class-balanced sampling and mixup cost to read: milliseconds a clip, and shards touched.

    python -m benchmarks.sampling --shards FOLDER [--clips 1024]

Prints a table, and as its last line the same as JSON. The plain order reads a window of shards at a time; balanced
sampling reads from all of them, and with mixup half the places read a second clip. Wall-clock time of one reader
process in this process's file cache: on a network file system, where what is not local is slow, the shards touched
by a batch tell more. For a set at a URL the cache has to hold all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence

from datasets.loading.loader import ClipNeeds, DataConfig, TrainShare, train_loader
from datasets.loading.reader import ClipReader
from datasets.loading.sampling import SamplingConfig
from home_paths import command_line

CASES = {
    "plain": SamplingConfig(),
    "balanced": SamplingConfig(balanced=True),
    "plain with mixup": SamplingConfig(mixup=0.5),
    "balanced with mixup": SamplingConfig(balanced=True, mixup=0.5),
}


def measure(
    shards: str, sampling: SamplingConfig, clips: int, batch_size: int, window: int
) -> tuple[float, float, float]:
    """Milliseconds of wall clock and of processor a clip, and shards touched by a batch."""
    config = DataConfig(shards, num_workers=0, shuffle_window=window)
    loader = train_loader(config, ClipNeeds(), TrainShare(0, batch_size), sampling)
    assert isinstance(loader.reader, ClipReader)
    table = loader.reader.table
    batches = iter(loader)
    next(batches)  # opens the shards
    wall, cpu, touched = time.perf_counter(), time.process_time(), 0
    steps = max(1, clips // batch_size)
    for _ in range(steps):
        batch = next(batches)
        partners = getattr(batch, "partners", None)
        rows = batch.rows.tolist() + ([] if partners is None else partners.rows.tolist())
        touched += len({table.shard_of(row) for row in rows})
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall * 1000 / (steps * batch_size), cpu * 1000 / (steps * batch_size), touched / steps


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sampling", description="Time ways of sampling."
    )
    parser.add_argument("--shards", required=True, help="a labelled set")
    parser.add_argument("--clips", type=int, default=1024, help="clips to read for each way")
    parser.add_argument("--batch_size", type=int, default=48, help="clips to a batch")
    parser.add_argument(
        "--window", type=int, default=16, help="shards to a shuffle window of the plain order"
    )
    options = parser.parse_args(command_line(arguments))
    summary: dict[str, float] = {}
    print(f"{'':24s}{'ms a clip':>12s}{'processor':>12s}{'shards a batch':>16s}")
    for name, sampling in CASES.items():
        wall, cpu, touched = measure(
            options.shards, sampling, options.clips, options.batch_size, options.window
        )
        print(f"{name:24s}{wall:12.2f}{cpu:12.2f}{touched:16.1f}")
        key = name.replace(" ", "_")
        summary |= {f"ms_{key}": round(wall, 3), f"cpu_ms_{key}": round(cpu, 3), f"shards_{key}": touched}
    machine = {"cpu": platform.processor(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "sampling", **summary, **machine}))


if __name__ == "__main__":
    main()
