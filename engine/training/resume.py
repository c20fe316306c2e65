"""The beginning of a training: the engine, at the newest complete checkpoint of the run where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.objectives.base import Objective
from engine.parallel.deepspeed_engine import build_engine, forget_universal
from engine.parallel.world import World
from engine.training.checkpoint import (
    Checkpoint,
    changed_settings,
    check_objective,
    clear_leftovers,
    load_checkpoint,
    make_universal,
    needs_universal,
    newest_sound_checkpoint,
)
from engine.training.optimizer import build_optimizer
from engine.training.runlog import logger

if TYPE_CHECKING:
    from engine.config import RunConfig


def resume(objective: Objective[Any], config: RunConfig, world: World, config_yaml: str) -> tuple[Any, int]:
    """Builds the DeepSpeed engine and loads the run's newest checkpoint; every rank calls it.

    Args:
        objective: On the world's device, with its initial weights.
        config: The run.
        world: The processes.
        config_yaml: The resolved config, compared with the checkpoint's.

    Returns:
        The engine, and the steps taken.

    Raises:
        CheckpointError: The checkpoint is of another objective or model, or can't be used so.
    """
    run = Path(config.output_dir)
    if world.is_main:
        clear_leftovers(run)
    checkpoint = newest_sound_checkpoint(run, world)
    parallel = config.train.parallel
    if checkpoint is not None:
        check_objective(checkpoint, objective)
    convert = checkpoint is not None and needs_universal(checkpoint, world.size, parallel.zero_stage)
    universal = _converted(checkpoint, world) if checkpoint is not None and convert else None
    groups, no_decay = objective.lr_groups(), objective.no_weight_decay()
    optimizer = build_optimizer(config.optimizer, objective.model, no_decay, groups)
    engine = build_engine(objective, optimizer, parallel, world, convert)
    if checkpoint is None:
        return engine, 0
    load_checkpoint(engine, checkpoint, universal)
    if universal is not None:
        world.barrier()
        if world.is_main:
            shutil.rmtree(universal)
    forget_universal(engine)
    if world.is_main:
        logger.info("resuming at step %d from %s", checkpoint.state.step, checkpoint.path)
        for change in changed_settings(checkpoint, config_yaml):
            logger.warning("changed since that checkpoint: %s", change)
    return engine, checkpoint.state.step


def _converted(checkpoint: Checkpoint, world: World) -> Path:
    """A copy of the checkpoint's state for this world size, the same folder on every rank."""
    made = world.broadcast_object(make_universal(checkpoint) if world.is_main else None)
    assert isinstance(made, Path)
    return made
