"""A training of which rank 1 fails by a fault of ours, in the phase that names its folder, while the others go on."""

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from support.training import make_trainer, small_objective

from engine.checkpoints.saving import CheckpointWriter
from engine.cli import run_program
from engine.config import PretrainConfig
from engine.objectives.cav_mae import CavMae
from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.world import World
from engine.training.train_config import TrainConfig

#: What fails in each phase; a start fails by itself.
FAULTS = {
    "start": None,
    "step": (CavMae, "forward"),
    "evaluation": (CavMae, "embed"),
    "save": (CheckpointWriter, "begin"),
    "write": ("engine.checkpoints.saving.digest_files", None),
    "resume": ("engine.training.resume.load_checkpoint", None),
    "interrupt": (CavMae, "forward"),
}


def main(config: PretrainConfig, config_yaml: str, world: World) -> bool:
    run = Path(config.output_dir)
    phase = run.name
    if phase == "start" and world.rank == 1:
        _fail()
    workspace, algorithms = (
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        torch.are_deterministic_algorithms_enabled(),
    )
    print(f"deterministic: {algorithms} {workspace}", file=sys.stderr)
    parallel = ParallelConfig(global_batch_size=12, zero_stage=1, precision="fp32")
    train = TrainConfig(steps=2, log_interval=1, eval_interval=1, checkpoint_interval=1, parallel=parallel)

    def evaluate(objective: Any, step: int, log: object) -> dict[str, float]:
        objective.embed(None)
        return {"val/ranks": float(len(world.gather_objects(step)))}

    with patch.object(CavMae, "embed", lambda *_: {}):
        if phase == "resume":
            make_trainer(world, run, replace(train, steps=1), objective=small_objective()).fit()
        with _fault(phase if world.rank == 1 else "start"):
            return make_trainer(world, run, train, objective=small_objective(), evaluate=evaluate).fit()


def _fault(phase: str) -> Any:
    fail = _interrupt if phase == "interrupt" else _fail
    match FAULTS.get(phase):
        case None:
            return nullcontext()
        case (str(name), None):
            return patch(name, fail)
        case (owner, name):
            return patch.object(owner, name, fail)


def _fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("a fault of ours")


def _interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(run_program(str(Path(__file__).name), PretrainConfig, main))
