"""What the ``main_*`` programs share: from a command line to an exit status."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from datasets.batch import TooManyFailuresError
from datasets.shards.tar import ShardError
from engine.config import RunConfig, parse_config
from engine.parallel.world import World, distributed
from engine.training.checkpoint import CheckpointError, newest_sound_checkpoint
from engine.training.runlog import logger, setup_console
from engine.training.stop import EXIT_RERUN
from engine.training.trainer import TrainingError

T = TypeVar("T", bound=RunConfig)

#: What is wrong with what the user gave, said in a line; anything else is our mistake and shows its traceback.
_USER_ERRORS = (ShardError, CheckpointError, TrainingError, TooManyFailuresError, ValueError)


def run_program(name: str, config_kind: type[T], main: Callable[[T, str, World], bool]) -> int:
    """Parses the command line, joins the processes, runs ``main``; returns the exit status."""
    config, config_yaml = parse_config(config_kind, name)
    setup_console(is_main=os.environ.get("RANK", "0") == "0")
    try:
        with distributed() as world:
            if not getattr(config, "eval_only", False):  # a live run's folder may be evaluated
                newest_sound_checkpoint(Path(config.output_dir), world)
            finished = main(config, config_yaml, world)
    except _USER_ERRORS as error:
        logger.error("%s: %s", type(error).__name__, error)
        _end_now(1)
    return 0 if finished else EXIT_RERUN


def _end_now(status: int) -> NoReturn:
    """Ends a process whose peers may be waiting for it in a collective: no exit handler may wait for them."""
    for handler in logger.handlers:
        handler.flush()
    os._exit(status)
