"""Writing a checkpoint while training goes on: all ranks under a temporary name, which rank 0 then changes.

What a rank does does not grow with the number of ranks: it copies its own part of the state to the host's memory
between two steps, and a thread writes, syncs and hashes it meanwhile.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from atomic import fsync, new_file, write_atomically
from engine.checkpoints.folder import (
    BESIDE_MODEL,
    DEEPSPEED,
    CheckpointError,
    CheckpointState,
    find_checkpoints,
    parts_beside_model,
)
from engine.checkpoints.integrity import STATE, FileDigest, digest_files, write_sealed
from engine.checkpoints.keeping import disposable, remove
from engine.checkpoints.weights import to_float32
from engine.objectives.base import Objective
from engine.parallel.deepspeed_engine import copy_state
from engine.parallel.world import World
from models.weights.tensor_files import WEIGHTS_NAME, write_safetensors


@dataclass(frozen=True)
class Notes:
    """What the trainer adds to a checkpoint's state; see `CheckpointState`."""

    data: str = ""
    groups: dict[str, list[str]] = field(default_factory=dict)
    loss: float | None = None


@dataclass(frozen=True)
class _Begun:
    """A checkpoint that is being written.

    Attributes:
        temporary: Its folder until it is complete.
        state: What its ``state.json`` will say, but for the files.
        written: This rank's files, when they are on disk.
    """

    temporary: Path
    state: CheckpointState
    written: Future[dict[str, FileDigest]]


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time; every rank has one and calls it alike.

    Args:
        run: The run's folder.
        world: The processes.
        zero_stage: DeepSpeed's.
        keep: How many of the newest checkpoints stay.
    """

    def __init__(self, run: Path, world: World, zero_stage: int, keep: int) -> None:
        self.run, self.world, self.zero_stage, self.keep = run, world, zero_stage, keep
        self._begun: _Begun | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    @property
    def writing(self) -> bool:
        """Whether this rank has not yet written its part, so that `finish` would wait."""
        return self._begun is not None and not self._begun.written.done()

    def begin(
        self, engine: Any, objective: Objective[Any], step: int, config_yaml: str, notes: Notes
    ) -> None:
        """Copies the state, which the next steps may change then, and begins to write; finishes the one before.

        Args:
            engine: The DeepSpeed engine.
            objective: What the engine trains.
            step: Steps taken.
            config_yaml: The resolved config.
            notes: What else ``state.json`` holds.

        Raises:
            CheckpointError: The one before, or the new one's folder, could not be written; on every rank.
        """
        import deepspeed

        self.finish()
        temporary = self.run / "checkpoints" / f".writing_step_{step:08d}"
        self.world.from_main(lambda: _make(temporary))
        states = copy_state(engine, temporary, DEEPSPEED)
        write_beside = _plain_files(states, config_yaml) if self.world.is_main else None
        state = CheckpointState(
            step, self.world.size, self.zero_stage, torch.__version__, deepspeed.__version__,
            objective=objective.kind, beside_model=parts_beside_model(objective), **vars(notes),
        )  # fmt: skip
        written = self._thread.submit(_write, temporary, states, write_beside)
        self._begun = _Begun(temporary, state, written)

    def finish(self) -> None:
        """Waits until all ranks have written their parts; then rank 0 gives the checkpoint its name.

        Raises:
            CheckpointError: Some rank's part, or what names it, could not be written; on every rank.
        """
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        parts = self.world.gather_outcomes(begun.written.result)
        files = {name: digest for part in parts for name, digest in part.items()}
        self.world.from_main(lambda: self._name(begun.temporary, replace(begun.state, files=files)))

    def close(self) -> None:
        """Ends the thread, which may still be writing where training has failed: that checkpoint is never found."""
        self._thread.shutdown(wait=False)

    def _name(self, temporary: Path, state: CheckpointState) -> None:
        with _failures_said(temporary):
            for folder in (temporary / DEEPSPEED, temporary):  # for the names of what the ranks have synced
                fsync(folder)
            write_sealed(temporary / STATE, asdict(state))
            fsync(temporary)
            final = temporary.with_name(f"step_{state.step:08d}")
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            fsync(final.parent)
            for old in disposable(find_checkpoints(self.run), self.keep):
                remove(old)


def _make(folder: Path) -> None:
    with _failures_said(folder):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / DEEPSPEED).mkdir(parents=True)


def _plain_files(states: Mapping[Path, Any], config_yaml: str) -> Callable[[Path], None]:
    """What writes into a folder what lies beside DeepSpeed's files; the weights are those in the copied states."""
    (module,) = (state["module"] for state in states.values() if "module" in state)
    weights, beside = {}, {}
    for name, value in module.items():
        if name.startswith("model."):
            weights[name.removeprefix("model.")] = value
        else:
            beside[name] = value

    def write(folder: Path) -> None:
        write_safetensors(folder / WEIGHTS_NAME, to_float32(weights))
        if beside:
            write_safetensors(folder / BESIDE_MODEL, beside)
        write_atomically(folder / "config.yaml", config_yaml)

    return write


def _write(
    folder: Path,
    states: Mapping[Path, Any],
    write_beside: Callable[[Path], None] | None,
) -> dict[str, FileDigest]:
    """Writes and syncs this rank's files; returns what they are.

    Synced here, since a node that vanishes later must not take along what it had yet to write.
    """
    with _failures_said(folder):
        for path, state in states.items():
            _save(state, path)
        files = list(states)
        if write_beside is not None:
            write_beside(folder)
            files += [path for path in folder.iterdir() if path.is_file()]
        return digest_files(folder, files)


def _save(state: Any, path: Path) -> None:
    with new_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # in which torch hides what the system said
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _failures_said(folder: Path) -> Iterator[None]:
    """What the system says where a disk is full or fails, as a `CheckpointError` with what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{folder}: a checkpoint can't be written ({said}). When it can, run the same command again: it goes on "
            "from the newest one that is complete"
        ) from error
