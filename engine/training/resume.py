"""The beginning of a training: the engine, at the newest sound checkpoint of the run where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoints.folder import Checkpoint
from engine.checkpoints.keeping import clear_leftovers, newest_sound_checkpoint
from engine.checkpoints.loading import check_objective, load_checkpoint
from engine.objectives.base import Objective
from engine.parallel.deepspeed_engine import build_engine, inner_optimizer
from engine.parallel.world import World
from engine.records.runlog import logger
from engine.training.changes import check_data, check_groups, check_settings, naming_changes
from engine.training.leftovers import discard_later
from engine.training.optimizer import (
    apply_settings,
    build_optimizer,
    group_members,
    group_settings,
    place_steps,
)

if TYPE_CHECKING:
    from engine.config import RunConfig


def resume(
    objective: Objective[Any], config: RunConfig, world: World, config_yaml: str, data: str
) -> tuple[Any, dict[str, list[str]], Checkpoint | None]:
    """Builds the DeepSpeed engine and loads the run's newest checkpoint; every rank calls it.

    Args:
        objective: On the world's device, with its initial weights.
        config: The run.
        world: The processes.
        config_yaml: The resolved config, compared with the checkpoint's.
        data: Fingerprint of the training set, compared likewise.

    Returns:
        The engine, the parameters of each of its optimizer's groups, and what it was loaded from (None in a run that
        begins).

    Raises:
        CheckpointError: The checkpoint is of another objective, model or set, or can't be used so.
    """
    run = Path(config.output_dir)
    if world.is_main:
        clear_leftovers(run)
    checkpoint = newest_sound_checkpoint(run, world)
    groups, no_decay = objective.lr_groups(), objective.no_weight_decay()
    optimizer = build_optimizer(config.optimizer, objective.model, no_decay, groups)
    members = group_members(optimizer, objective.model)
    said: list[str] = []
    if checkpoint is not None:
        accepted = config.train.accept_changed_data
        said = world.from_main(lambda: _check(checkpoint, objective, config_yaml, data, members, accepted))
    engine = build_engine(objective, optimizer, config.train.parallel, world)
    if checkpoint is not None:
        restore(engine, checkpoint, world, config.train.parallel.zero_stage)
    if world.is_main:
        if checkpoint is not None:
            logger.info("resuming at step %d from %s", checkpoint.state.step, checkpoint.path)
        for line in said:
            logger.warning("%s", line)
        discard_later(run, checkpoint.state.step if checkpoint is not None else -1)
    return engine, members, checkpoint


def _check(
    checkpoint: Checkpoint,
    objective: Objective[Any],
    config_yaml: str,
    data: str,
    members: dict[str, list[str]],
    accepted: bool,
) -> list[str]:
    """What to say of a checkpoint that is of this run; raises `CheckpointError` for one that is not."""
    with naming_changes(checkpoint, config_yaml):
        check_objective(checkpoint, objective)
    changed = check_settings(checkpoint, config_yaml)
    said = [f"applied, changed since that checkpoint: {line}" for line in changed]
    said += filter(None, [check_data(checkpoint, data, accepted)])
    check_groups(checkpoint, members, config_yaml)
    return said


def restore(engine: Any, checkpoint: Checkpoint, world: World, zero_stage: int) -> None:
    """Loads a checkpoint of whatever world size; the optimizer's settings stay the config's. Every rank calls it.

    Args:
        engine: The engine.
        checkpoint: What to load.
        world: The processes.
        zero_stage: The run's.
    """
    settings = group_settings(engine.optimizer)
    load_checkpoint(engine, checkpoint, world, zero_stage)
    apply_settings(engine.optimizer, settings)
    place_steps(inner_optimizer(engine))
