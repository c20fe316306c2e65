"""Loading a checkpoint into the DeepSpeed engine, in a world of any size, with nothing of it run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import safetensors
import torch
from torch import nn
from torch._weights_only_unpickler import UnpicklingError

from engine.checkpoints.folder import (
    BESIDE_MODEL,
    CONVERTING,
    DEEPSPEED,
    Checkpoint,
    CheckpointError,
    parts_beside_model,
)
from engine.checkpoints.weights import load_weights
from engine.objectives.base import Objective
from engine.parallel.deepspeed_engine import reading_own_files
from engine.parallel.restricted import tensors_only
from engine.parallel.world import World
from models.weights.errors import WeightsError
from models.weights.unpickle import refusal, refuse_unfolding

_UNIVERSAL = "universal"


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


def needs_universal(checkpoint: Checkpoint, world_size: int, zero_stage: int) -> bool:
    """Whether the checkpoint has to be converted for this world size.

    Raises:
        CheckpointError: If it was written with another ZeRO stage.
    """
    if checkpoint.state.zero_stage != zero_stage:
        raise CheckpointError(
            f"{checkpoint.path} was written with train.parallel.zero_stage {checkpoint.state.zero_stage}, this "
            f"run has {zero_stage}: set it back to resume, or start a new output_dir with init pointing at this "
            "checkpoint"
        )
    return zero_stage > 0 and checkpoint.state.world_size != world_size


def load_checkpoint(engine: Any, checkpoint: Checkpoint, world: World, universal: Path | None = None) -> None:
    """Loads ``checkpoint`` into the DeepSpeed engine; every rank calls it.

    Args:
        engine: The engine; within `reading_universal` where ``universal`` is given.
        checkpoint: What to load.
        world: The processes.
        universal: What ``make_universal`` made of it for this world size, which is then read.

    Raises:
        CheckpointError: It can't be loaded, or holds more than tensors; nothing of it was run.
    """
    tag = _UNIVERSAL if universal else DEEPSPEED
    _share_refusing(checkpoint, world)
    try:
        with plain_path(universal or checkpoint.path) as folder, tensors_only(), reading_own_files(engine):
            loaded, _ = engine.load_checkpoint(folder, tag=tag)
    except UnpicklingError as error:
        raise CheckpointError(str(refusal(checkpoint.path / DEEPSPEED, str(error)))) from error
    if loaded is None:
        raise CheckpointError(f"{checkpoint.path}: DeepSpeed found nothing to load in it")
    if universal is not None:
        _restore_untrained(engine.module, checkpoint)


def _share_refusing(checkpoint: Checkpoint, world: World) -> None:
    """`_refuse_unfolding` of DeepSpeed's files, which the ranks share; every rank raises what any has found."""
    paths = world.from_main(lambda: _deepspeed_files(checkpoint))
    found = None
    try:
        _refuse_unfolding(paths[world.rank :: world.size])
    except CheckpointError as error:
        found = str(error)
    problem = next(filter(None, world.gather_objects(found)), None)
    if problem is not None:
        raise CheckpointError(problem)


def _deepspeed_files(checkpoint: Checkpoint) -> list[Path]:
    return sorted((checkpoint.path / DEEPSPEED).glob("*.pt"))


def _refuse_unfolding(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            refuse_unfolding(path)
        except (WeightsError, BadZipFile) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error


@torch.no_grad()
def _restore_untrained(objective: Objective[Any], checkpoint: Checkpoint) -> None:
    """Frozen weights, buffers and what lies beside the model: a universal checkpoint holds what is optimized alone."""
    stored = {f"model.{name}": value for name, value in load_weights(checkpoint.path).items()}
    beside = checkpoint.path / BESIDE_MODEL
    if beside.is_file():
        stored |= load_weights(beside)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    for name, value in objective.state_dict().items():
        if name not in trained:
            value.copy_(stored[name])


def make_universal(checkpoint: Checkpoint) -> Path:
    """Converts DeepSpeed's partitioned state to its universal form, in a new folder; one rank calls it.

    Returns:
        The new folder, which whoever loaded it removes.

    Raises:
        CheckpointError: The state can't be converted, or holds more than tensors; nothing of it was run.
    """
    _refuse_unfolding(_deepspeed_files(checkpoint))
    folder = Path(tempfile.mkdtemp(prefix=CONVERTING, dir=checkpoint.path))
    command = [sys.executable, "-P", "-m", "engine.parallel.restricted", "--inject_missing_state"]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    hidden = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    paths = [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with plain_path(checkpoint.path) as source:
        command += ["--input_folder", f"{source}/{DEEPSPEED}"]
        command += ["--output_folder", f"{source}/{folder.name}/{_UNIVERSAL}"]
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment
        )
    if result.returncode:
        shutil.rmtree(folder)
        if "UnpicklingError" in result.stderr:
            raise CheckpointError(str(refusal(checkpoint.path / DEEPSPEED, result.stderr)))
        raise CheckpointError(f"{checkpoint.path}: DeepSpeed's conversion failed:\n{result.stderr[-2000:]}")
    return folder


@contextmanager
def plain_path(folder: Path) -> Iterator[str]:
    """A path of ``folder`` without its name, whose brackets DeepSpeed would hand to ``glob``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
