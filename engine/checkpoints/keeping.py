"""Which checkpoints stay, which are set aside, and which is the newest that is sound."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from atomic import TEMPORARY_SUFFIX
from engine.checkpoints.folder import (
    Checkpoint,
    CheckpointError,
    checkpoint_folders,
    open_checkpoint,
)
from engine.checkpoints.integrity import find_damage
from engine.parallel.world import World
from engine.records.runlog import logger

_WRITTEN_BY_TRAINING = (
    "*.json.*", "*.jsonl.*", "config.yaml.*", "run.lock.*", "wandb_id.*",
    "average/*", "best/*", "pictures/*", "teacher/*",
)  # fmt: skip


def newest_sound_checkpoint(run: Path, world: World) -> Checkpoint | None:
    """The newest checkpoint whose files are what was written, or None in a run without one; every rank calls it.

    Damaged ones that are newer are set aside as ``damaged_step_…``, and the log says what is wrong with them.

    Raises:
        CheckpointError: All that there are, are damaged. They keep their names, so that no later attempt begins anew.
    """
    problems: dict[Path, str] = {}
    for folder in reversed(world.from_main(lambda: checkpoint_folders(run))):
        found = world.from_main(partial(_open_or_say, folder))
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


def _open_or_say(folder: Path) -> Checkpoint | str:
    """A checkpoint, or what is wrong with its ``state.json``."""
    try:
        return open_checkpoint(folder)
    except CheckpointError as error:
        return str(error)


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


def _set_aside(path: Path, word: str) -> None:
    aside = path.with_name(f"{word}_{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def remove(checkpoint: Checkpoint) -> None:
    """Takes a checkpoint away; it stops being found before its files go."""
    doomed = checkpoint.path.with_name(f".removing_{checkpoint.path.name}")
    checkpoint.path.rename(doomed)
    shutil.rmtree(doomed)


def clear_leftovers(run: Path) -> None:
    """Removes what a killed process left half-written or half-removed; before anything is written, on one rank."""
    for pattern in (".writing_*", ".removing_*"):
        for path in (run / "checkpoints").glob(pattern):
            shutil.rmtree(path)
    # Only what training writes: of a report or an evaluation another process may be writing at this moment. And nothing
    # of this process, which writes meanwhile that it holds the run.
    for pattern in _WRITTEN_BY_TRAINING:
        for path in run.glob(pattern + TEMPORARY_SUFFIX):
            if f".{os.getpid()}." not in path.name:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
