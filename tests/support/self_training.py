"""Both stages of MAViL and rounds of the second, in one process, as the programs run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.config import PretrainConfig, parse_config
from engine.parallel.world import World, distributed
from engine.self_training import SelfTrainingConfig, self_train
from engine.tasks.pretrain import pretrain

SMALL = [
    "model.name=mavil_tiny", "model.image_size=32", "model.audio_length=64", "model.frames=2", "model.embed_dim=32",
    "model.num_heads=2", "model.depth=1", "model.fusion_depth=1", "model.decoder_embed_dim=16", "model.decoder_depth=1",
    "model.decoder_num_heads=2", "model.mask={audio_ratio: 0.5, visual_ratio: 0.5}", "train.log_interval=1",
    "train.parallel.global_batch_size=8", "optimizer.lr=1e-3", "train.steps=2",
]  # fmt: skip
STAGE_1, STAGE_2 = "objective.kind=mavil", "objective.kind=mavil_self_training"


def train_first_stage(world: World, *words: str) -> bool:
    config, text = parse_config(PretrainConfig, "main_pretrain.py", [*SMALL, STAGE_1, *words])
    return pretrain(config, text, world)


def train_rounds(world: World, *words: str) -> bool:
    config, text = parse_config(SelfTrainingConfig, "engine.self_training", [*SMALL, STAGE_2, *words])
    return self_train(config, text, world)


def one_round_then_two(shards: str, folder: str) -> dict[str, Any]:
    """A first stage, one round, and then the second: whether each finished."""
    first, rounds = Path(folder) / "first", Path(folder) / "rounds"
    data = f"data.train={shards}"
    given = [data, f"objective.teacher={first}", f"output_dir={rounds}"]
    with distributed() as world:
        found = {
            "first": train_first_stage(world, data, f"output_dir={first}"),
            "one": train_rounds(world, *given, "rounds=1"),
        }
        return found | {"two": train_rounds(world, *given, "rounds=2")}
