"""Writing a checkpoint: all ranks under a temporary name, which rank 0 then changes.

What a rank does does not grow with the number of ranks: it writes and syncs its own part of the state, and hashes its
share of the files. What is there is for rank 0 to say.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from atomic import fsync, write_atomically
from engine.checkpoints.folder import (
    BESIDE_MODEL,
    DEEPSPEED,
    CheckpointState,
    find_checkpoints,
    parts_beside_model,
)
from engine.checkpoints.integrity import STATE, digest_files, write_sealed
from engine.checkpoints.keeping import disposable, remove
from engine.checkpoints.weights import save_weights
from engine.objectives.base import Objective
from engine.parallel.world import World
from models.weights.tensor_files import write_safetensors


@dataclass(frozen=True)
class Notes:
    """What the trainer adds to a checkpoint's state; see `CheckpointState`."""

    data: str = ""
    groups: dict[str, list[str]] = field(default_factory=dict)
    loss: float | None = None


def save_checkpoint(
    engine: Any,
    objective: Objective[Any],
    run: Path,
    step: int,
    config_yaml: str,
    world: World,
    notes: Notes,
    *,
    zero_stage: int,
    keep: int,
) -> Path:
    """Writes a checkpoint; every rank calls it.

    Args:
        engine: The DeepSpeed engine.
        objective: Its model's weights go into ``model.safetensors``.
        run: The run's folder.
        step: Steps taken.
        config_yaml: The resolved config.
        world: The processes.
        notes: What else ``state.json`` holds.
        zero_stage: DeepSpeed's.
        keep: How many of the newest checkpoints stay.

    Returns:
        The finished checkpoint's folder.
    """
    import deepspeed

    folder = run / "checkpoints"
    final = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{final.name}"
    world.from_main(lambda: _begin(temporary))
    # Behind it every rank has written its part.
    engine.save_checkpoint(str(temporary), tag=DEEPSPEED, save_latest=False)
    world.from_main(lambda: _add_plain_files(temporary, objective, config_yaml))
    files = digest_files(temporary, world)
    if world.is_main:
        state = CheckpointState(
            step, world.size, zero_stage, torch.__version__, deepspeed.__version__, files,
            objective=objective.kind, beside_model=parts_beside_model(objective), **vars(notes),
        )  # fmt: skip
        write_sealed(temporary / STATE, asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync(folder)
        for old in disposable(find_checkpoints(run), keep):
            remove(old)
    world.barrier()
    return final


def _begin(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / DEEPSPEED).mkdir(parents=True)


def _add_plain_files(folder: Path, objective: Objective[Any], config_yaml: str) -> None:
    """Writes what lies beside DeepSpeed's files, and syncs that and the names of all; every rank has synced its own."""
    save_weights(objective.model, folder / "model.safetensors")
    beside = {name: value for name, value in objective.state_dict().items() if not name.startswith("model.")}
    if beside:
        write_safetensors(folder / BESIDE_MODEL, {name: value.cpu() for name, value in beside.items()})
    write_atomically(folder / "config.yaml", config_yaml)
    for path in (*sorted(folder.iterdir()), folder):
        fsync(path)
