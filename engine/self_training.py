"""Rounds of self-training, each round's student the next one's teacher: ``python -m engine.self_training``.

    python -m engine.self_training --config configs/….yaml objective.teacher=runs/mavil output_dir=runs/st rounds=3
    torchrun --standalone --nproc_per_node 8 -m engine.self_training --config ...

It takes the keys of main_pretrain.py and ``rounds``. Round k is a run of its own in ``output_dir/round_k``, which
main_pretrain.py could go on with just as well. The same command again goes on with the round that is not finished.
Exit status as of main_pretrain.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from engine.config import PretrainConfig
from engine.namesake import check_datasets
from engine.parallel.world import World
from engine.records.runlog import logger
from engine.tasks.pretrain import pretrain
from strict_yaml import load_yaml


@dataclass(frozen=True)
class SelfTrainingConfig(PretrainConfig):
    """Rounds of self-training.

    Attributes:
        rounds: How many (3 in MAViL, recalled of the paper). The first one's teacher is ``objective.teacher``.
    """

    output_dir: str = "runs/self_training"
    rounds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}: it must be at least 1")
        if "teacher" not in {f.name for f in fields(self.objective)}:
            raise ValueError(
                f"objective.kind {self.objective.kind} has no teacher: give one that has, such as mavil_self_training"
            )


def self_train(config: SelfTrainingConfig, config_yaml: str, world: World) -> bool:
    """Runs all rounds, or the rest of them; arguments and result as of `engine.tasks.pretrain.pretrain`."""
    for number in range(1, config.rounds + 1):
        one, text = round_config(config, config_yaml, number)
        logger.info("round %d of %d, in %s", number, config.rounds, one.output_dir)
        if not pretrain(one, text, world):
            return False
    return True


def round_config(config: SelfTrainingConfig, config_yaml: str, number: int) -> tuple[PretrainConfig, str]:
    """The run that is round ``number``, from 1, and the same as YAML."""
    values = load_yaml(config_yaml)
    del values["rounds"]
    changed = {"output_dir": str(Path(config.output_dir) / f"round_{number}")}
    values["output_dir"] = changed["output_dir"]
    objective = config.objective
    if number > 1:
        values["objective"]["teacher"] = str(Path(config.output_dir) / f"round_{number - 1}")
        objective = replace(objective, teacher=values["objective"]["teacher"])
    return replace(config, **changed, objective=objective), yaml.safe_dump(values, sort_keys=False)


if __name__ == "__main__":
    check_datasets()
    from engine.cli import run_program

    sys.exit(run_program("engine.self_training", SelfTrainingConfig, self_train))
