"""submitit's executors, set up from the launch settings."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from submitit import Job, LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from launch.config import LaunchConfig
from launch.job import TrainingJob


def submit_jobs(config: LaunchConfig, jobs: Sequence[TrainingJob], logs: Path, code: Path) -> list[Job[str]]:
    """Submits ``jobs``, several as an array.

    Args:
        config: The launch settings; cluster ``slurm`` or ``local``.
        jobs: What to run.
        logs: Where submitit keeps its files and the logs go, on a file system that all nodes see.
        code: The folder whose `launch` package the job runs.

    Raises:
        ValueError: This machine has no SLURM, or SLURM refuses the jobs.
    """
    executor = _slurm(config, logs, code) if config.cluster == "slurm" else _local(config, logs)
    try:
        with chdir(code), _apart() if config.cluster == "local" else nullcontext():
            if len(jobs) == 1:
                return [executor.submit(jobs[0])]
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
    except FailedJobError as error:
        raise ValueError(f"the cluster refuses the job: {str(error).strip()}") from error
    return submitted


@contextmanager
def _apart() -> Iterator[None]:
    """What is started within lives on its own, without this terminal's streams and Ctrl-C.

    submitit's local controller inherits both, and would keep a pipe from this program open for as long as it
    trains. Its own output goes to the job's log.
    """
    sys.stdout.flush()
    saved = [os.dup(number) for number in (0, 1, 2)]
    nothing = os.open(os.devnull, os.O_RDWR)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        yield
    finally:
        for number, copy in enumerate(saved):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nothing)
        signal.signal(signal.SIGINT, interrupt)


def sbatch_script(config: LaunchConfig, logs: Path, code: Path, runs: int) -> str:
    """The sbatch script that a submission would use, also where there is no SLURM."""
    command = (
        f"{config.python or shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    )
    count = runs if runs > 1 else None
    return _make_sbatch_string(command, logs, map_count=count, **slurm_parameters(config, code))


def slurm_parameters(config: LaunchConfig, code: Path) -> dict[str, Any]:
    """The launch settings as submitit names them."""
    processes = config.processes
    cpus = config.cpus_per_process * processes if config.cpus_per_process else None
    parameters: dict[str, Any] = {
        "job_name": config.name,
        "nodes": config.nodes,
        "ntasks_per_node": 1,  # torchrun makes the workers
        "cpus_per_task": cpus,
        "gpus_per_node": config.gpus_per_node or None,
        "mem": f"{round(config.memory_gb * 1024)}M" if config.memory_gb else None,
        "time": config.minutes,
        "signal_delay_s": config.warning_seconds,
        "array_parallelism": config.array_parallelism,
        "setup": list(config.setup) or None,
        "stderr_to_stdout": True,
        # Since SLURM 22.05 srun no longer takes the cores from sbatch, and would bind the task to one.
        "srun_args": [*([f"--cpus-per-task={cpus}"] if cpus else []), *config.srun_args],
        # Not every cluster lets jobs be requeued unless they ask for it.
        "additional_parameters": {"requeue": True, "chdir": str(code), **config.sbatch},
    }
    for key in ("partition", "account", "qos", "constraint", "comment", "exclude"):
        parameters[key] = getattr(config, key)
    return {key: value for key, value in parameters.items() if value is not None}


def _slurm(config: LaunchConfig, logs: Path, code: Path) -> SlurmExecutor:
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError(
            "cluster: slurm, but this machine has no sbatch and srun. Submit from a login node, or use "
            "cluster=local or cluster=debug"
        )
    executor = SlurmExecutor(logs, max_num_timeout=config.max_requeues, python=config.python)
    executor.update_parameters(**slurm_parameters(config, code))
    return executor


def _local(config: LaunchConfig, logs: Path) -> LocalExecutor:
    executor = LocalExecutor(logs, max_num_timeout=config.max_requeues, python=_local_python(config))
    visible = [int(gpu) for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.isdigit()]
    executor.update_parameters(
        tasks_per_node=1,
        timeout_min=config.minutes,
        signal_delay_s=config.warning_seconds,
        stderr_to_stdout=True,
        gpus_per_node=config.gpus_per_node,
        visible_gpus=tuple(visible),
    )
    return executor


def _local_python(config: LaunchConfig) -> str:
    """What runs the job's Python, after the setup lines.

    submitit's own ``setup`` puts a shell between the job and the process that it takes for the job, which then
    does not hear that it is cancelled.
    """
    python = config.python or shlex.quote(sys.executable)
    if not config.setup:
        return python
    script = "\n".join(["set -e", *config.setup, 'exec "$@"'])
    return f"bash -c {shlex.quote(script)} setup {python}"
