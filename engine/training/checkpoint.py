"""Checkpoints: written by all ranks under a temporary name, renamed by rank 0, and only complete ones ever found.

``RUN/checkpoints/step_00000120/`` holds

- ``deepspeed/``: the optimizer's and model's state as DeepSpeed writes it, read only to resume this very run;
- ``model.safetensors``: the model's plain float32 weights, readable without Earsight;
- ``beside_model.safetensors``: what the objective holds beside its model, such as a teacher, where it does;
- ``config.yaml``: the resolved config;
- ``state.json``: step, world size and ZeRO stage, versions, and size and SHA-256 of every other file. A checkpoint
  that is damaged is set aside when its run is resumed, under a name that says so, and the one before it is taken.

Batches, masks, augmentation and learning rate are functions of the step, so the step is all there is to resume.
A run resumed in a world of another size goes through DeepSpeed's universal checkpoint where ZeRO has partitioned
the state: a copy that the resuming process makes and removes, whatever the folder holds already.

A run's folder may come from others. What DeepSpeed reads of it is restricted to tensors (`engine.parallel.restricted`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._weights_only_unpickler import UnpicklingError

from atomic import fsync, write_atomically
from engine.objectives.base import Objective
from engine.parallel.restricted import tensors_only
from engine.parallel.world import World
from engine.records.runlog import logger
from engine.training.integrity import (
    STATE,
    check_listed,
    digest_files,
    find_damage,
    read_sealed,
    write_sealed,
)
from engine.training.train_config import TrainConfig
from models.weights.errors import WeightsError
from models.weights.tensor_files import write_safetensors
from models.weights.unpickle import refusal, refuse_unfolding

_NAME = re.compile(r"^step_(\d{8})$")
_DEEPSPEED = "deepspeed"
_BESIDE_MODEL = "beside_model.safetensors"
_UNIVERSAL = "universal"
_CONVERTING = ".converting_"


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
class Notes:
    """What the trainer adds to a checkpoint's state; see `CheckpointState`."""

    data: str = ""
    groups: dict[str, list[str]] = field(default_factory=dict)
    loss: float | None = None


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
    for path in _folders(run):
        try:
            found.append(_open_checkpoint(path))
        except CheckpointError as error:
            logger.warning("left out: %s", error)
    return found


def newest_sound_checkpoint(run: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint whose files are what was written, or None in a run without one; every rank calls it.

    Damaged ones that are newer are set aside as ``damaged_step_…``, and the log says what is wrong with them.

    Raises:
        CheckpointError: All that there are, are damaged. They keep their names, so that no later attempt begins anew.
    """
    problems: dict[Path, str] = {}
    folders: Any = world.broadcast_object(_folders(run) if world.is_main else None)
    for folder in reversed(folders):
        found: Any = world.broadcast_object(_open_or_say(folder) if world.is_main else None)
        if isinstance(found, Checkpoint):
            problem = find_damage(found.path, found.state.files, world)
            if problem is None:
                _set_damaged_aside(problems, world)
                return found
            problems[folder] = f"{folder} is damaged: {problem}"
        else:
            problems[folder] = found
    if problems:
        raise CheckpointError(
            f"no checkpoint of {run} is sound: {'; '.join(problems.values())}. Bring back one of them from a copy, or "
            "choose another output_dir to start from scratch"
        )
    return None


def _set_damaged_aside(problems: dict[Path, str], world: World) -> None:
    if world.is_main:
        for folder, problem in problems.items():
            logger.error("%s; it is set aside", problem)
            _set_aside(folder, "damaged")
    world.barrier()


def disposable(checkpoints: list[Checkpoint], keep: int) -> list[Checkpoint]:
    """Those that may be removed: all except the newest and the last that is known to be good.

    Args:
        checkpoints: Oldest first.
        keep: How many of the newest stay.
    """
    good = last_known_good(checkpoints)
    return [checkpoint for checkpoint in checkpoints[:-keep] if checkpoint != good]


def last_known_good(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The newest checkpoint whose weights gave a loss not far above the lowest, or None where nothing is known.

    The quality of its weights shows in the loss of the steps after it, which the next checkpoint records. One step at
    too high a rate ruins the weights, and the loss of that step itself does not show it yet.
    """
    losses = [_loss_after(checkpoints[place + 1 :]) for place in range(len(checkpoints))]
    known = [
        (checkpoint, loss) for checkpoint, loss in zip(checkpoints, losses, strict=True) if loss is not None
    ]
    lowest = min((loss for _, loss in known), default=0.0)
    fair = [checkpoint for checkpoint, loss in known if loss <= lowest + abs(lowest) / 2]
    return fair[-1] if fair else None


def _loss_after(later: list[Checkpoint]) -> float | None:
    return next((c.state.loss for c in later if c.state.loss is not None), None)


def set_aside(checkpoints: list[Checkpoint], word: str) -> None:
    """Renames checkpoints so that they are not found any more, and their files stay to be looked at."""
    for checkpoint in checkpoints:
        _set_aside(checkpoint.path, word)


def _open_or_say(folder: Path) -> Checkpoint | str:
    """A checkpoint, or what is wrong with its ``state.json``."""
    try:
        return _open_checkpoint(folder)
    except CheckpointError as error:
        return str(error)


def _folders(run: Path) -> list[Path]:
    return [path for path in sorted((run / "checkpoints").glob("step_*")) if _NAME.match(path.name)]


def _open_checkpoint(path: Path) -> Checkpoint:
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


def _set_aside(path: Path, word: str) -> None:
    aside = path.with_name(f"{word}_{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def save_checkpoint(
    engine: Any,
    objective: Objective[Any],
    run: Path,
    step: int,
    config: TrainConfig,
    config_yaml: str,
    world: World,
    notes: Notes,
) -> Path:
    """Writes a checkpoint; every rank calls it.

    Args:
        engine: The DeepSpeed engine.
        objective: Its model's weights go into ``model.safetensors``.
        run: The run's folder.
        step: Steps taken.
        config: How many of the newest checkpoints stay, and DeepSpeed's ZeRO stage.
        config_yaml: The resolved config.
        world: The processes.
        notes: What else ``state.json`` holds.

    Returns:
        The finished checkpoint's folder.
    """
    import deepspeed

    folder = run / "checkpoints"
    final = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{final.name}"
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    engine.save_checkpoint(str(temporary), tag=_DEEPSPEED, save_latest=False)
    if world.is_main:
        save_weights(objective.model, temporary / "model.safetensors")
        beside = {
            name: value for name, value in objective.state_dict().items() if not name.startswith("model.")
        }
        if beside:
            write_safetensors(
                temporary / _BESIDE_MODEL, {name: value.cpu() for name, value in beside.items()}
            )
        write_atomically(temporary / "config.yaml", config_yaml)
    world.barrier()
    # On every node: one that vanishes later must not take along what it had yet to write.
    _sync_tree(temporary)
    world.barrier()
    files = digest_files(temporary, world)
    if world.is_main:
        zero_stage, versions = config.parallel.zero_stage, (torch.__version__, deepspeed.__version__)
        beside = _beside_model(objective)
        state = CheckpointState(
            step, world.size, zero_stage, *versions, files,
            objective=objective.kind, beside_model=beside, **vars(notes),
        )  # fmt: skip
        write_sealed(temporary / STATE, asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync(folder)
        for old in disposable(find_checkpoints(run), config.keep_checkpoints):
            remove(old)
    world.barrier()
    return final


def clear_leftovers(run: Path) -> None:
    """Removes what a killed process left half-written or half-removed; before anything is written, on one rank."""
    for pattern in (".writing_*", ".removing_*", f"step_*/{_CONVERTING}*"):
        for path in (run / "checkpoints").glob(pattern):
            shutil.rmtree(path)


def remove(checkpoint: Checkpoint) -> None:
    """Takes a checkpoint away; it stops being found before its files go."""
    doomed = checkpoint.path.with_name(f".removing_{checkpoint.path.name}")
    checkpoint.path.rename(doomed)
    shutil.rmtree(doomed)


def load_checkpoint(engine: Any, checkpoint: Checkpoint, universal: Path | None = None) -> None:
    """Loads ``checkpoint`` into the DeepSpeed engine; every rank calls it.

    Args:
        engine: The engine, told by `read_universal` what it reads.
        checkpoint: What to load.
        universal: What ``make_universal`` made of it for this world size, which is then read.

    Raises:
        CheckpointError: It can't be loaded, or holds more than tensors; nothing of it was run.
    """
    tag = _UNIVERSAL if universal else _DEEPSPEED
    _refuse_unfolding(checkpoint)
    try:
        with plain_path(universal or checkpoint.path) as folder, tensors_only():
            loaded, _ = engine.load_checkpoint(folder, tag=tag)
    except UnpicklingError as error:
        raise CheckpointError(str(refusal(checkpoint.path / _DEEPSPEED, str(error)))) from error
    if loaded is None:
        raise CheckpointError(f"{checkpoint.path}: DeepSpeed found nothing to load in it")
    if universal is not None:
        _restore_untrained(engine.module, checkpoint)


def _refuse_unfolding(checkpoint: Checkpoint) -> None:
    for path in sorted((checkpoint.path / _DEEPSPEED).glob("*.pt")):
        try:
            refuse_unfolding(path)
        except (WeightsError, BadZipFile) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error


@torch.no_grad()
def _restore_untrained(objective: Objective[Any], checkpoint: Checkpoint) -> None:
    """Frozen weights, buffers and what lies beside the model: a universal checkpoint holds what is optimized alone."""
    stored = {f"model.{name}": value for name, value in load_weights(checkpoint.path).items()}
    beside = checkpoint.path / _BESIDE_MODEL
    if beside.is_file():
        stored |= safetensors.torch.load_file(beside)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    for name, value in objective.state_dict().items():
        if name not in trained:
            value.copy_(stored[name])


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


def _beside_model(objective: Objective[Any]) -> tuple[str, ...]:
    """Names of the objective's own modules with a state that is neither its model's nor a constant."""
    return tuple(name for name, part in objective.named_children() if name != "model" and part.state_dict())


def check_objective(checkpoint: Checkpoint, objective: Objective[Any]) -> None:
    """Raises `CheckpointError` unless the checkpoint is of this very objective and model."""
    state, expected = checkpoint.state, _beside_model(objective)
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
    with safetensors.safe_open(checkpoint.weights, "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
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


def make_universal(checkpoint: Checkpoint) -> Path:
    """Converts DeepSpeed's partitioned state to its universal form, in a new folder; one rank calls it.

    Returns:
        The new folder, which whoever loaded it removes.

    Raises:
        CheckpointError: The state can't be converted, or holds more than tensors; nothing of it was run.
    """
    _refuse_unfolding(checkpoint)
    folder = Path(tempfile.mkdtemp(prefix=_CONVERTING, dir=checkpoint.path))
    command = [sys.executable, "-P", "-m", "engine.parallel.restricted", "--inject_missing_state"]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    hidden = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    paths = [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with plain_path(checkpoint.path) as source:
        command += ["--input_folder", f"{source}/{_DEEPSPEED}"]
        command += ["--output_folder", f"{source}/{folder.name}/{_UNIVERSAL}"]
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment
        )
    if result.returncode:
        shutil.rmtree(folder)
        if "UnpicklingError" in result.stderr:
            raise CheckpointError(str(refusal(checkpoint.path / _DEEPSPEED, result.stderr)))
        raise CheckpointError(f"{checkpoint.path}: DeepSpeed's conversion failed:\n{result.stderr[-2000:]}")
    return folder


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the float32 weights of ``model``; parameters and persistent buffers, under their own names."""
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    write_safetensors(path, weights)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint's ``model.safetensors``.

    Args:
        path: The file, a checkpoint's folder, or a run's folder (its newest checkpoint is taken).

    Raises:
        CheckpointError: If there is no such thing.
    """
    if path.is_dir() and (path / "checkpoints").is_dir():
        checkpoints = find_checkpoints(path)
        if not checkpoints:
            raise CheckpointError(f"{path}: the run has no complete checkpoint yet")
        path = checkpoints[-1].path
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


@torch.no_grad()
def weights_are_finite(module: nn.Module) -> bool:
    """Whether no parameter of this rank holds NaN or infinity."""
    sums = torch.stack([parameter.float().sum() for parameter in module.parameters()])
    return bool(torch.isfinite(sums).all().item())


@contextmanager
def plain_path(folder: Path) -> Iterator[str]:
    """A path of ``folder`` without its name, whose brackets DeepSpeed would hand to ``glob``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        fsync(path)
    fsync(folder)
