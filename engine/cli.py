"""What the ``main_*`` programs share: from a command line to an exit status, and the final state in ``status.json``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from atomic import check_writable, refuse_links
from datasets.batch import TooManyFailuresError
from datasets.loading.workers import STOP_WORD, LoaderStalledError
from datasets.shards.tar import ShardError
from engine.checkpoints.folder import CheckpointError
from engine.config import RunConfig, parse_config
from engine.parallel.devices import compute_deterministically
from engine.parallel.world import World, check_slurm_tasks, distributed
from engine.records.runlog import logger, setup_console
from engine.records.status import NAME, fail_status, update_status
from engine.settings import given_settings
from engine.signals import STOP
from engine.training.run_lock import RunInUseError, hold_run, is_held_by_another
from engine.training.stop import EXIT_RERUN, StoppedError
from engine.training.trainer import TrainingError
from terminal import show_control_characters

T = TypeVar("T", bound=RunConfig)

#: The user's mistakes, reported in one line; anything else is our mistake and shows its traceback.
_USER_ERRORS = (
    ShardError,
    CheckpointError,
    TrainingError,
    TooManyFailuresError,
    LoaderStalledError,
    ValueError,
)


def run_program(name: str, config_kind: type[T], main: Callable[[T, str, World], bool]) -> int:
    """Parses the command line, joins the processes, runs ``main``; returns the exit status.

    Whatever ends the program after that, the run's ``status.json`` says so.
    """
    show_control_characters()
    STOP.listen()
    STOP_WORD.asked = lambda: STOP.requested
    config, config_yaml = _parse(name, config_kind)
    setup_console(is_main=os.environ.get("RANK", "0") == "0")
    folder = config.status_folder
    STOP.while_starting(partial(_end_before_training, folder))
    try:
        check_slurm_tasks(os.environ, name)
        check_writable(folder)
        if config.train.parallel.deterministic:
            compute_deterministically()
        with distributed() as world, _held(config, world):
            finished = _run(main, config, config_yaml, world)
            STOP.ignore()
            world.barrier()
            if world.is_main:
                last = {"state": "finished", "phase": ""} if finished else {"state": "stopped"}
                update_status(folder, **last, message="")
    except RunInUseError as error:  # the other process's status must stay
        logger.error("%s: %s", type(error).__name__, error)
        _end_now(1)
    except _USER_ERRORS as error:
        logger.error("%s: %s", type(error).__name__, error)
        _note_failure(folder, error)
        _end_now(1)
    except BaseException as error:
        _note_failure(folder, error)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        logger.error("rank %s ends", os.environ.get("RANK"), exc_info=error)
        _end_now(130 if isinstance(error, KeyboardInterrupt) else 1)
    return 0 if finished else EXIT_RERUN


def _parse(name: str, config_kind: type[T]) -> tuple[T, str]:
    """Parses the command line; an existing run whose config is refused must not keep its previous status."""
    try:
        return parse_config(config_kind, name)
    except SystemExit as end:
        if end.code:
            folder = _given_output_dir(sys.argv[1:])
            if folder is not None and (folder / NAME).is_file() and not is_held_by_another(folder):
                with suppress(OSError):
                    fail_status(folder, "the config was refused; the log says why")
        raise


def _given_output_dir(words: Sequence[str]) -> Path | None:
    """The folder that a command line or the files it names give a run, even where the rest of it is wrong."""
    found = given_settings(words).get("output_dir")
    return Path(found) if isinstance(found, str) and found else None


def _held(config: RunConfig, world: World) -> AbstractContextManager[None]:
    """The run's folder, without links, held while it is trained in; a live run's folder may be evaluated."""
    world.from_main(lambda: refuse_links(Path(config.output_dir), skip=("launch", "wandb")))
    return hold_run(Path(config.output_dir), world) if config.trains else nullcontext()


def _run(main: Callable[[T, str, World], bool], config: T, config_yaml: str, world: World) -> bool:
    if world.is_main:
        update_status(config.status_folder, state="running", phase="starting", evaluated=0, message="")
    try:
        return main(config, config_yaml, world)
    except StoppedError as stopped:
        logger.info("%s; run the same command again to go on", stopped)
        return False


def _end_before_training(folder: Path, number: int) -> None:
    """Ends this process at once: there is nothing to save yet.

    torchrun ends its processes by SIGTERM when one of them has failed: that is no request to stop.
    """
    failed = number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ
    with suppress(OSError):
        if is_held_by_another(folder):
            pass
        elif failed:
            fail_status(folder, "ended by SIGTERM before training began, by torchrun or a person")
        else:
            update_status(folder, state="stopped", message="before training began")
    _end_now(128 + number if failed else EXIT_RERUN)


def _note_failure(folder: Path, error: BaseException) -> None:
    # Where the folder can't be written either, the log has the error.
    with suppress(OSError):
        fail_status(folder, f"{type(error).__name__}: {error}")


def _end_now(status: int) -> NoReturn:
    """Ends a process whose peers may be waiting for it in a collective: no exit handler may wait for them."""
    for handler in logger.handlers:
        handler.flush()
    os._exit(status)
