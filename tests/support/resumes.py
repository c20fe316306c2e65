"""Runs that are resumed with other settings, in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.training import make_trainer

from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.world import distributed
from engine.training.optimizer import OptimizerConfig
from engine.training.train_config import TrainConfig


def changed_optimizers(folder: str) -> list[dict[str, Any]]:
    """At each ZeRO stage, the settings of the optimizer's groups after a resume with all of them changed."""
    changed = OptimizerConfig(kind="adam", lr=2e-3, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.5)
    found: list[dict[str, Any]] = []
    stages: tuple[Any, ...] = (0, 1, 2)
    with distributed() as world:
        for stage in stages:
            parallel = ParallelConfig(global_batch_size=12, precision="fp32", zero_stage=stage)
            run = Path(folder, str(stage))
            train = TrainConfig(steps=2, log_interval=1, checkpoint_interval=1, parallel=parallel)
            assert make_trainer(world, run, train).fit()
            resumed = make_trainer(world, run, train, changed)
            groups = resumed.engine.optimizer.param_groups
            keys = ("name", "weight_decay", "betas", "eps", "lr_scale", "decoupled_weight_decay")
            found.append(
                {"step": resumed.step, "groups": [{key: group[key] for key in keys} for group in groups]}
            )
            resumed.stop.close()
            resumed.log.close()
    return found
