"""Runs of main_finetune.py from command lines, one after the other in one process group."""

from __future__ import annotations

from engine.config import parse_config
from engine.parallel.world import World, distributed
from engine.tasks.finetune import finetune
from engine.tasks.finetune_config import LabelledConfig


def tune(runs: list[list[str]]) -> list[bool]:
    """For each command line whether the run finished."""
    with distributed() as world:
        return tune_here(runs, world)


def tune_here(runs: list[list[str]], world: World) -> list[bool]:
    """The same in a process group that is there."""
    return [finetune(*parse_config(LabelledConfig, "test", words), world) for words in runs]
