"""Times what a checkpoint costs training: written behind the steps that follow, against waiting for it, by turns.

    python benchmarks/checkpoints.py --model cav_mae_base --batch_size 1
    torchrun --nproc_per_node 8 benchmarks/checkpoints.py --model cav_mae_base --batch_size 64 --folder /shared

Each turn takes ``--steps`` steps without a checkpoint, with one that is waited for, and with one that is written behind
them. The table has medians: how long training stood still, how long all of it took beyond the steps without, and a step
meanwhile. ``--folder`` is where they are written, and removed again; a temporary folder otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step import build, make_batch, synchronize, timed_step
from engine.checkpoints.saving import CheckpointWriter, Notes
from engine.objectives.registry import list_objectives
from engine.parallel.world import World, distributed
from home_paths import command_line
from models import list_models

WAYS = ("none", "waited for", "behind")
#: Seconds: that training stood still, that all steps took, and a step until the checkpoint was complete.
Times = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objective", default="cav_mae", choices=list_objectives())
    parser.add_argument("--model", choices=list_models(), help="another than the objective's default")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a process")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--zero_stage", type=int, default=0, choices=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20, help="of each way in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the file system to be timed")
    options = parser.parse_args(command_line())
    options.overlap_comm = options.compile = options.checkpointing = False
    with distributed() as world, _scratch(world, options.folder) as folder:
        table = measure(world, options, folder)
    if world.is_main:
        print(table)


def measure(world: World, options: argparse.Namespace, folder: Path) -> str:
    """The table, and a line of JSON with every turn's seconds."""
    engine, objective = build(world, options, folder)
    batches = [make_batch(options.batch_size, objective.needs(), world, number) for number in range(4)]
    writer = CheckpointWriter(folder, world, options.zero_stage, keep=1)

    numbers = itertools.count()

    def step() -> float:
        return timed_step(engine, options.zero_stage, batches[next(numbers) % 4], world)

    for _ in range(3):
        step()
    found: dict[str, list[Times]] = {way: [] for way in WAYS}
    for _ in range(options.turns):
        for way in WAYS:
            synchronize(world)
            started = time.perf_counter()
            if way != "none":
                writer.begin(engine, objective, next(numbers), "", Notes())
            if way == "waited for":
                writer.finish()
            pause, meanwhile = time.perf_counter() - started, []
            for _ in range(options.steps):
                seconds = step()
                if any(world.gather_objects(writer.writing)):
                    meanwhile.append(seconds)
                else:
                    writer.finish()
            writer.finish()
            total = time.perf_counter() - started
            found[way].append((pause, total, statistics.median(meanwhile) if meanwhile else 0.0))
    writer.close()
    size = sum(path.stat().st_size for path in folder.glob("checkpoints/step_*/**/*") if path.is_file())
    return _table(found, options.steps, size)


def _table(found: dict[str, list[Times]], steps: int, size: int) -> str:
    without = statistics.median(total for _, total, _ in found["none"])
    lines = [
        f"a checkpoint has {size / 1e9:.2f} GB; {steps} steps without one take {without:.2f} s",
        f"{'checkpoint':14}{'stood still, s':>16}{'cost in all, s':>16}{'a step meanwhile, s':>21}",
    ]
    for way in WAYS[1:]:
        pause, total, step = (statistics.median(values) for values in zip(*found[way], strict=True))
        shown = f"{step:.3f}" if step else "–"
        lines.append(f"{way:14}{pause:16.2f}{total - without:16.2f}{shown:>21}")
    lines.append(json.dumps({way: [[round(s, 3) for s in times] for times in found[way]] for way in WAYS}))
    return "\n".join(lines)


@contextmanager
def _scratch(world: World, parent: Path | None) -> Iterator[Path]:
    """A folder that all ranks see."""
    folder = Path(world.from_main(lambda: tempfile.mkdtemp(dir=parent)))
    try:
        yield folder
        world.barrier()
    finally:
        if world.is_main:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
