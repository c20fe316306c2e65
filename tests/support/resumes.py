"""Runs that are resumed with other settings, in real processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

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


def resumed_with_a_stale_listing(run: str) -> dict[str, Any]:
    """A run resumed, led back after a bad step, and given up, where rank 1 sees no checkpoint and no list of steps."""
    folder = Path(run)
    with distributed() as world:
        parallel = ParallelConfig(global_batch_size=12, precision="fp32", zero_stage=1)
        train = TrainConfig(steps=2, log_interval=1, checkpoint_interval=2, parallel=parallel)
        assert make_trainer(world, folder, train).fit()
        if world.is_main:
            (folder / "skipped_steps.json").write_text("[3]")
        world.barrier()
        with stale_listing() if world.rank else nullcontext():
            trainer = make_trainer(world, folder, replace(train, steps=5))
            found: dict[str, Any] = {"resumed": trainer.step, "skipped": sorted(trainer.skipped)}
            trainer._ids[4] = []
            trainer._go_back(4)
            found |= {"back": trainer.step, "left": [int(re.findall(r"step (\d+)", trainer._retreat())[-1])]}
            found["finished"] = trainer.fit()
        return found


@contextmanager
def stale_listing() -> Iterator[None]:
    """Listings of ``checkpoints`` are empty, and files just written are not there yet."""
    is_file, glob = Path.is_file, Path.glob

    def stale_glob(folder: Path, pattern: str) -> Iterable[Path]:
        return [] if folder.name == "checkpoints" else glob(folder, pattern)

    def stale_is_file(path: Path) -> bool:
        return path.name != "skipped_steps.json" and is_file(path)

    with patch.object(Path, "glob", stale_glob), patch.object(Path, "is_file", stale_is_file):
        yield
