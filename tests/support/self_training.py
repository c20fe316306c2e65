"""Both stages of MAViL and rounds of the second, in one process, as the programs run them."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

from engine.config import PretrainConfig, parse_config
from engine.parallel.world import World, distributed
from engine.records.runlog import logger
from engine.self_training import SelfTrainingConfig, self_train
from engine.tasks.pretrain import pretrain

SMALL = [
    "model.name=mavil_tiny", "model.image_size=32", "model.audio_length=64", "model.frames=2", "model.embed_dim=32",
    "model.num_heads=2", "model.depth=1", "model.fusion_depth=1", "model.decoder_embed_dim=16", "model.decoder_depth=1",
    "model.decoder_num_heads=2", "model.mask={audio_ratio: 0.5, visual_ratio: 0.5}", "train.log_interval=1",
    "train.parallel.global_batch_size=8", "optimizer.lr=1e-3", "train.steps=6",
]  # fmt: skip
STAGE_1, STAGE_2 = "objective.kind=mavil", "objective.kind=mavil_self_training"


def train_first_stage(world: World, *words: str) -> bool:
    config, text = parse_config(PretrainConfig, "main_pretrain.py", [*SMALL, STAGE_1, *words])
    return pretrain(config, text, world)


def train_rounds(world: World, *words: str) -> bool:
    config, text = parse_config(SelfTrainingConfig, "engine.self_training", [*SMALL, STAGE_2, *words])
    return self_train(config, text, world)


class TerminateAt(logging.Handler):
    """Sends this process SIGTERM when it logs the line of a step, after that of a round."""

    def __init__(self, round_line: str, step_line: str) -> None:
        super().__init__()
        self._expected = [round_line, step_line]

    def emit(self, record: logging.LogRecord) -> None:
        """Looks for the lines one after the other."""
        if self._expected and self._expected[0] in record.getMessage():
            self._expected.pop(0)
            if not self._expected:
                os.kill(os.getpid(), signal.SIGTERM)


def rounds_apart(shards: str, folder: str) -> dict[str, Any]:
    """A first stage; one round and then the second; both at once, stopped in the second: whether each finished."""
    first = Path(folder) / "first"
    data = f"data.train={shards}"
    given = [data, f"objective.teacher={first}"]
    with distributed() as world:
        found = {
            "first": train_first_stage(world, data, f"output_dir={first}"),
            "one": train_rounds(world, *given, f"output_dir={folder}/rounds", "rounds=1"),
            "two": train_rounds(world, *given, f"output_dir={folder}/rounds", "rounds=2"),
        }
        stop = TerminateAt("round 2 of 2", "step 2/6")
        logger.addHandler(stop)
        logger.setLevel(logging.INFO)
        found["stopped"] = train_rounds(world, *given, f"output_dir={folder}/stopped", "rounds=2")
        logger.removeHandler(stop)
        return found


def the_rest(shards: str, folder: str) -> bool:
    """What `rounds_apart` left, in a world of whatever size; whether it finished."""
    given = [f"data.train={shards}", f"objective.teacher={folder}/first", f"output_dir={folder}/stopped"]
    with distributed() as world:
        return train_rounds(world, *given, "rounds=2")
