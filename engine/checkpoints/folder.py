"""Checkpoints: written by all ranks under a temporary name, renamed by rank 0, and only complete ones ever found.

``RUN/checkpoints/step_00000120/`` holds

- ``deepspeed/``: the optimizer's and model's state as DeepSpeed writes it, read only to resume this very run;
- ``model.safetensors``: the model's plain float32 weights, readable without Earsight;
- ``beside_model.safetensors``: what the objective holds beside its model, such as a teacher, where it does;
- ``config.yaml``: the resolved config;
- ``state.json``: step, world size and ZeRO stage, versions, and size and SHA-256 of every other file. A checkpoint
  that is damaged is set aside when its run is resumed, under a name that says so, and the one before it is taken.

Batches, masks, augmentation and learning rate are functions of the step, so the step is all there is to resume.
In a world of another size each rank reads its own part of a state that ZeRO has partitioned (`partitions`).

A run's folder may come from others. What DeepSpeed reads of it is restricted to tensors (`engine.parallel.restricted`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.checkpoints.integrity import STATE, check_listed, read_sealed
from engine.objectives.base import Objective
from engine.records.runlog import logger

DEEPSPEED = "deepspeed"
BESIDE_MODEL = "beside_model.safetensors"
_NAME = re.compile(r"^step_(\d{8})$")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason and what to do."""


@dataclass(frozen=True)
class CheckpointState:
    """What ``state.json`` says.

    Attributes:
        step: Steps taken.
        world_size: Processes that wrote it.
        zero_stage: DeepSpeed's ZeRO stage.
        torch: Version of torch.
        deepspeed: Version of DeepSpeed.
        files: Bytes and SHA-256 of each file; none in checkpoints of earlier versions, which are not checked.
        data: Fingerprint of the training set or sets; empty in checkpoints of earlier versions.
        groups: Names of the parameters in each of the optimizer's groups.
        loss: Training loss of the last steps before it; None where none was taken since the checkpoint before.
        objective: The objective's kind; empty in checkpoints from before there were kinds.
        beside_model: The modules that the objective holds beside its model, such as ``teacher``.
    """

    step: int
    world_size: int
    zero_stage: int
    torch: str
    deepspeed: str
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    data: str = ""
    groups: dict[str, list[str]] = field(default_factory=dict)
    loss: float | None = None
    objective: str = ""
    beside_model: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: CheckpointState

    @property
    def weights(self) -> Path:
        """The plain float32 weights."""
        return self.path / "model.safetensors"

    @property
    def config_yaml(self) -> str:
        """The resolved config of the run that wrote it."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first; one whose ``state.json`` is damaged is left out and named."""
    found = []
    for path in checkpoint_folders(run):
        try:
            found.append(open_checkpoint(path))
        except CheckpointError as error:
            logger.warning("left out: %s", error)
    return found


def checkpoint_folders(run: Path) -> list[Path]:
    """Folders of a run that are named as complete checkpoints are, oldest first."""
    return [path for path in sorted((run / "checkpoints").glob("step_*")) if _NAME.match(path.name)]


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder; raises `CheckpointError` where its ``state.json`` is damaged."""
    try:
        values = read_sealed(path / STATE)
        known = {f.name: values[f.name] for f in fields(CheckpointState) if f.name in values}
        check_listed(values.get("files", {}))
        state = CheckpointState(**known)
        state = replace(state, beside_model=tuple(state.beside_model))
        if f"step_{state.step:08d}" != path.name:
            raise ValueError(f"{STATE} is of step {state.step}")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return Checkpoint(path, state)


def parts_beside_model(objective: Objective[Any]) -> tuple[str, ...]:
    """Names of the objective's own modules with a state that is neither its model's nor a constant."""
    return tuple(name for name, part in objective.named_children() if name != "model" and part.state_dict())
