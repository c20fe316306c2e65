"""What the ``main_*`` programs share: from a command line to an exit status."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

from datasets.atomic import refuse_links
from datasets.batch import TooManyFailuresError
from datasets.shards.tar import ShardError
from engine.config import RunConfig, parse_config
from engine.parallel.world import World, distributed
from engine.training.checkpoint import CheckpointError, newest_sound_checkpoint
from engine.training.run_lock import hold_run
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
        check_slurm_tasks(os.environ, name)
        refuse_links(Path(config.output_dir), skip=("launch",))
        with distributed() as world:
            run = Path(config.output_dir)
            if getattr(config, "eval_only", False):  # a live run's folder may be evaluated
                finished = main(config, config_yaml, world)
            else:
                with hold_run(run, world):
                    newest_sound_checkpoint(run, world)
                    finished = main(config, config_yaml, world)
    except _USER_ERRORS as error:
        logger.error("%s: %s", type(error).__name__, error)
        _end_now(1)
    return 0 if finished else EXIT_RERUN


def check_slurm_tasks(environment: Mapping[str, str], program: str) -> None:
    """Refuses to be one of several tasks of srun that know nothing of each other.

    Args:
        environment: This process's variables.
        program: The program's name.

    Raises:
        ValueError: SLURM started several tasks, and torch's variables are not set: each would be a world of one.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    if "RANK" in environment or "SLURM_PROCID" not in environment or not tasks.isdigit() or int(tasks) == 1:
        return
    raise ValueError(
        f"SLURM runs {tasks} tasks here, but RANK and WORLD_SIZE are not set: each task would train alone, all in one "
        f"folder. Submit with `python -m launch.submit --config LAUNCH.yaml -- {program} ...`, or start one task a "
        f"node with `srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc_per_node=PROCESSES "
        f"--rdzv_backend=c10d --rdzv_endpoint=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n1):29500 "
        f"{program} ...`; one process alone is `srun -n 1 python {program} ...`"
    )


def _end_now(status: int) -> NoReturn:
    """Ends a process whose peers may be waiting for it in a collective: no exit handler may wait for them."""
    for handler in logger.handlers:
        handler.flush()
    os._exit(status)
