"""Short trainings on made-up clips at every ZeRO stage, for `gpu_first.py`: one process stops halfway, two go on.

    torchrun --standalone --nproc_per_node 1 benchmarks/gpu_resume.py --out FOLDER
    torchrun --standalone --nproc_per_node 2 benchmarks/gpu_resume.py --out FOLDER

One process leaves ``whole_STAGE``, which trained to its end, and ``resumed_STAGE``, stopped by a signal halfway;
several take up the latter. Clips are functions of the step, so all numbers of processes see the same batches.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_section import smallest_model
from benchmarks.step import make_batch, make_objective
from datasets.batch import AVBatch
from datasets.loading.config import DataConfig
from engine.config import RunConfig
from engine.objectives.registry import list_objectives
from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.world import World, distributed
from engine.training.optimizer import OptimizerConfig
from engine.training.train_config import TrainConfig
from engine.training.trainer import Trainer, TrainingData
from home_paths import command_line

BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="the runs' folder")
    parser.add_argument("--objective", default="cav_mae", choices=list_objectives())
    parser.add_argument("--zero_stages", type=int, nargs="+", default=[0, 1, 2], choices=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8, help="of a whole run, 2 at least")
    options = parser.parse_args(command_line())
    Path(options.out).mkdir(parents=True, exist_ok=True)
    with distributed() as world:
        for stage in options.zero_stages:
            if world.size == 1:
                fit(world, Path(options.out, f"whole_{stage}"), options, stage)
            stop = options.steps // 2 - 1 if world.size == 1 else None
            fit(world, Path(options.out, f"resumed_{stage}"), options, stage, stop)


def fit(
    world: World, run: Path, options: argparse.Namespace, zero_stage: Any, stop: int | None = None
) -> None:
    """Trains to the end, or until a signal that comes while the batch of step ``stop`` (0-based) is read."""
    model = argparse.Namespace(
        objective=options.objective, model=smallest_model(options.objective), checkpointing=False
    )
    made = make_objective(model, run.parent)
    alone = World(0, 1, torch.device("cpu"))

    def loader(start: int, skipped: Collection[int]) -> Iterator[AVBatch]:
        share = BATCH // world.size
        for step in count(start):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            whole = make_batch(BATCH, made.needs(), alone, step)
            yield whole.part(slice(world.rank * share, (world.rank + 1) * share))

    parallel = ParallelConfig(BATCH, zero_stage=zero_stage, precision="fp32")
    train = TrainConfig(
        steps=options.steps,
        log_interval=1,
        checkpoint_interval=options.steps,
        keep_checkpoints=1,
        parallel=parallel,
    )
    config = RunConfig(
        data=DataConfig(train="made up"), output_dir=str(run), train=train, optimizer=OptimizerConfig()
    )
    Trainer(made, config, TrainingData(options.steps * BATCH, loader), world, f"model: {model.model}\n").fit()


if __name__ == "__main__":
    main()
