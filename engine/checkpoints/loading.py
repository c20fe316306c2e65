"""Loading a checkpoint into the DeepSpeed engine, in a world of any size, with nothing of it run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import safetensors
from torch import nn
from torch._weights_only_unpickler import UnpicklingError

from engine.checkpoints.folder import (
    DEEPSPEED,
    Checkpoint,
    CheckpointError,
    parts_beside_model,
)
from engine.checkpoints.partitions import Groups, Stretch, load_adam, read_adam, stretches
from engine.objectives.base import Objective
from engine.parallel.restricted import tensors_only
from engine.parallel.world import World
from models.weights.errors import WeightsError
from models.weights.unpickle import refusal, refuse_unfolding


def check_objective(checkpoint: Checkpoint, objective: Objective[Any]) -> None:
    """Raises `CheckpointError` unless the checkpoint is of this very objective and model."""
    state, expected = checkpoint.state, parts_beside_model(objective)
    if state.objective and state.objective != objective.kind:
        raise CheckpointError(
            f"{checkpoint.path} is of the objective {state.objective}, this run is of {objective.kind}: set "
            f"objective.kind back to resume, or start a new output_dir with init pointing at this checkpoint"
        )
    missing = [name for name in expected if name not in state.beside_model]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} has no {', '.join(missing)}, which the objective {objective.kind} trains with: it was "
            f"written with other settings of the objective. Restore these, or start a new output_dir with init "
            f"pointing at this checkpoint"
        )
    check_model(checkpoint, objective.model)


def check_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Raises `CheckpointError` unless the checkpoint is of this very model; names the first tensors that differ."""
    try:
        with safetensors.safe_open(checkpoint.weights, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint.weights} can't be read as safetensors: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    different = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if different:
        examples = "; ".join(
            f"{name}: {found.get(name, 'absent')} there, {expected.get(name, 'absent')} here"
            for name in different[:3]
        )
        raise CheckpointError(
            f"{checkpoint.path} is of another model: {len(different)} tensors differ ({examples}). "
            "Restore the model's settings or choose another output_dir"
        )


def load_checkpoint(engine: Any, checkpoint: Checkpoint, world: World, zero_stage: int) -> None:
    """Loads ``checkpoint``, of whatever world size, into the DeepSpeed engine; every rank calls it.

    Args:
        engine: The engine.
        checkpoint: What to load.
        world: The processes.
        zero_stage: The run's.

    Raises:
        CheckpointError: It can't be loaded, was written with another ZeRO stage, or holds more than tensors; nothing of
            it was run.
    """
    state = checkpoint.state
    if state.zero_stage != zero_stage:
        raise CheckpointError(
            f"{checkpoint.path} was written with train.parallel.zero_stage {state.zero_stage}, this run has "
            f"{zero_stage}: set it back to resume, or start a new output_dir with init pointing at this checkpoint"
        )
    world.from_main(lambda: _refuse_unfolding(checkpoint.path / DEEPSPEED))
    whole = zero_stage == 0  # Adam's state lies with the weights
    try:
        with plain_path(checkpoint.path) as folder, tensors_only():
            loaded, _ = engine.load_checkpoint(folder, tag=DEEPSPEED, load_optimizer_states=whole)
    except UnpicklingError as error:
        raise CheckpointError(str(refusal(checkpoint.path / DEEPSPEED, str(error)))) from error
    if loaded is None:
        raise CheckpointError(f"{checkpoint.path}: DeepSpeed found nothing to load in it")
    if not whole:
        own = stretches(engine.optimizer)
        load_adam(engine.optimizer, _read_own_part(checkpoint, own, world))


def _read_own_part(checkpoint: Checkpoint, own: Sequence[Stretch], world: World) -> Groups:
    """Adam's state of this rank; raises on every rank what any of them can't read."""
    folder, found = checkpoint.path / DEEPSPEED, Groups()

    def read() -> None:
        try:
            found.update(read_adam(folder, checkpoint.state.world_size, own, world.rank, world.size))
        except WeightsError as error:
            raise CheckpointError(str(error)) from error
        except (AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder} holds another optimizer's state than this run's ({type(error).__name__}: {error})"
            ) from error

    world.gather_outcomes(read)
    return found


def _refuse_unfolding(folder: Path) -> None:
    """Refuses files of weights that may unfold to any size; those of the optimizer are looked at where they are read.

    DeepSpeed reads the former.
    """
    for path in sorted(folder.glob("*_model_states.pt")):
        try:
            refuse_unfolding(path)
        except (WeightsError, BadZipFile) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error


@contextmanager
def plain_path(folder: Path) -> Iterator[str]:
    """A path of ``folder`` without its name, whose brackets DeepSpeed would hand to ``glob``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
