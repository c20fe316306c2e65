"""The training command line, as far as a launcher understands it: which script, and where its run goes."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from home_paths import expand_home
from launch.config import refuse_control
from strict_yaml import load_yaml_file


@dataclass(frozen=True)
class TrainingRun:
    """One run to be launched.

    Attributes:
        script: The training script.
        arguments: Its arguments, ending with the run's own ``output_dir``.
        output_dir: The run's folder, absolute.
    """

    script: Path
    arguments: tuple[str, ...]
    output_dir: Path


def plan_runs(
    command: Sequence[str], name: str, seeds: Sequence[int], sweep: Sequence[str], folder: Path
) -> list[TrainingRun]:
    """The runs that one submission makes.

    Args:
        command: The training script and its arguments.
        name: Used where neither arguments nor config file name an ``output_dir``.
        seeds: One run each, or none for the seed that the arguments give.
        sweep: Strings of overrides, one run each, or none.
        folder: What relative paths are relative to.

    Returns:
        One run, in its ``output_dir``; or those of a sweep, in folders below it named after what sets them
        apart.

    Raises:
        ValueError: There is no such script, or two runs of a sweep have the same overrides.
    """
    if not command or command[0].startswith("-"):
        raise ValueError(
            "after '--' comes the training script: -- main_pretrain.py --config configs/… key=value"
        )
    script = folder / command[0]
    if not script.is_file():
        raise ValueError(f"there is no training script {script}")
    arguments = tuple(command[1:])
    for argument in (*command, *sweep, str(folder)):
        refuse_control("command", argument)
    base = folder / (_output_dir(arguments, folder) or Path("runs") / name)
    refuse_control("output_dir", str(base))
    grid = itertools.product([f"seed={seed}" for seed in seeds] or [""], list(sweep) or [""])
    members = [f"{overrides} {seed}".strip() for seed, overrides in grid]
    if len(set(map(_slug, members))) < len(members):
        raise ValueError(f"seeds, sweep: two runs of the sweep are the same: {members}")
    return [_run(script, arguments, shlex.split(member), base / _slug(member)) for member in members]


def split_assignment(argument: str, following: str | None) -> tuple[str, str | None]:
    """Key and value of ``--key value``, ``--key=value`` or ``key=value``."""
    key, equals, value = argument.removeprefix("--").partition("=")
    if equals:
        return key, value
    return key, following if argument.startswith("--") else None


def values_of(key: str, arguments: Sequence[str]) -> list[str]:
    """All values that ``arguments`` give to ``key``, in order."""
    pairs = itertools.zip_longest(arguments, arguments[1:])
    assignments = (split_assignment(argument, following) for argument, following in pairs)
    return [value for name, value in assignments if name == key and value is not None]


def _run(script: Path, arguments: tuple[str, ...], overrides: list[str], output_dir: Path) -> TrainingRun:
    own = [o if o.startswith("--") else f"--{o}" for o in overrides]
    return TrainingRun(script, (*arguments, *own, f"--output_dir={output_dir}"), output_dir)


def _output_dir(arguments: Sequence[str], folder: Path) -> str | None:
    """The run's folder as arguments (which win) or config files say."""
    if given := values_of("output_dir", arguments):
        return given[-1]
    found = None
    for file in values_of("config", arguments):
        path = folder / file
        if not path.is_file():
            raise ValueError(f"--config: there is no file {path}")
        try:
            values = load_yaml_file(path) or {}
        except OSError as error:
            raise ValueError(f"--config: {path} can't be read: {error}") from error
        if not isinstance(values, dict) or not isinstance(values.get("output_dir", ""), str):
            raise ValueError(f"--config: {path} is no mapping whose output_dir is text")
        found = values.get("output_dir", found)
    return None if found is None else expand_home(found)


def _slug(overrides: str) -> str:
    """A folder name made of overrides; empty for none."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", overrides.replace("--", "").replace("=", "-")).strip("-")
