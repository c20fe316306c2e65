"""``python -m launch.submit --config launch.yaml -- main_pretrain.py --config configs/….yaml key=value``.

Before ``--`` stand the launch settings (``LaunchConfig``, as flags or in the file), after it the training
command as one would type it by hand. Prints job ids and where logs go.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit import Job

from atomic import refuse_links
from home_paths import command_line
from launch.config import LaunchConfig, launch_config, launch_parser
from launch.executors import sbatch_script, submit_jobs
from launch.follow import follow
from launch.job import TrainingFailedError, TrainingJob
from launch.preflight import run_preflight
from launch.registry import Submission, find_submissions, job_states
from launch.snapshot import ROOT, in_snapshot, take_snapshot
from launch.status import OVER
from launch.torchrun import GPUS, process_start
from launch.training import TrainingRun, plan_runs
from strict_yaml import check_files, contradictions
from terminal import show_control_characters


def main(arguments: Sequence[str] | None = None) -> int:
    """Submits what the command line says; returns the exit status."""
    show_control_characters()
    given = command_line(arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = launch_parser()
    parser.add_argument("--dry_run", action="store_true", help="print the sbatch script and submit nothing")
    parser.add_argument("--wait", action="store_true", help="follow the log to the end; exit as the run does")
    try:
        check_files(given[:cut])
        for sentence in contradictions(given[:cut]):
            print(f"{parser.prog}: note: {sentence}", file=sys.stderr)
        parsed = parser.parse_args(given[:cut])
        config = launch_config(parsed)
        runs = plan_runs(given[cut + 1 :], config.name, config.seeds, config.sweep, Path.cwd())
        if parsed.dry_run:
            return _dry_run(config, runs)
        return _submit(config, runs, wait=parsed.wait)
    except (ValueError, TrainingFailedError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _dry_run(config: LaunchConfig, runs: Sequence[TrainingRun]) -> int:
    base = _base(runs)
    if config.cluster == "slurm":
        print(sbatch_script(config, base / "launch" / "logs", _code_folder(config, base), len(runs)))
    else:
        print(f"# cluster={config.cluster}: {config.processes} processes on this machine, no sbatch script")
    for run in runs:
        print(f"# {shlex.join([str(run.script), *run.arguments])}")
    return 0


def _submit(config: LaunchConfig, runs: Sequence[TrainingRun], wait: bool) -> int:
    _refuse_what_runs_already(runs)
    if config.preflight:
        _check(config, runs)
    base = _base(runs)
    for folder in {base, *(run.output_dir for run in runs)}:
        refuse_links(folder / "launch", skip=("code",), itself=True)
    code = _code_folder(config, base)
    if config.snapshot:
        take_snapshot(code)
    jobs = [make_job(config, run, code) for run in runs]
    if config.cluster == "debug":
        return _debug(jobs)
    logs = base / "launch" / "logs"
    submitted = submit_jobs(config, jobs, logs, code)
    records = [_record(config, job, run, code) for job, run in zip(submitted, jobs, strict=True)]
    for record in records:
        print(f"job {record.job_id}: {record.output_dir}\n  log {record.log}")
    if not wait:
        return 0
    return max(follow(record) for record in records)


def _check(config: LaunchConfig, runs: Sequence[TrainingRun]) -> None:
    """Runs the preflight for each entry of the sweep; runs that differ in the seed alone are checked once."""
    gpu = {"gpu_memory_gb": config.gpu_memory_gb, "gpu_tflops": config.gpu_tflops, "mfu": config.mfu}
    if not config.gpus_per_node:
        gpu |= {"gpu_memory_gb": 0.0, "gpu_tflops": 0.0}
    options = [f"--{key}={value}" for key, value in gpu.items()]
    for run in runs[: len(config.sweep) or 1]:
        if run_preflight(run.script.name, run.arguments, config.nodes, config.processes, options):
            raise ValueError(
                f"preflight found the problems above in {run.output_dir}; nothing is submitted "
                "(--preflight=false skips it)"
            )


def _debug(jobs: Sequence[TrainingJob]) -> int:
    """Runs the jobs here, one after another."""
    for job in jobs:
        job()
    return 0


def make_job(config: LaunchConfig, run: TrainingRun, code: Path) -> TrainingJob:
    """The job that trains a run, with the code in a folder."""
    gpus = {GPUS: str(config.gpus_per_node)} if config.gpus_per_node else {}
    return TrainingJob(
        command=tuple(in_snapshot(run, code, Path.cwd())),
        output_dir=run.output_dir,
        folder=Path.cwd(),
        processes=config.processes,
        cpus_per_process=config.cpus_per_process,
        interface=config.interface,
        numa_binding=config.numa_binding,
        environment=gpus | {name: str(value) for name, value in config.environment.items()},
        max_restarts=config.max_restarts,
        max_requeues=config.max_requeues,
        warning_seconds=config.warning_seconds,
        rendezvous_seconds=config.rendezvous_seconds,
    )


def _record(config: LaunchConfig, submitted: Job[str], job: TrainingJob, code: Path) -> Submission:
    record = Submission(
        name=config.name,
        cluster=config.cluster,
        job_id=submitted.job_id,
        output_dir=str(job.output_dir),
        log=str(submitted.paths.stdout),
        code=str(code),
        command=list(job.command),
        started=process_start(int(submitted.job_id)) if config.cluster == "local" else None,
    )
    record.write()
    return record


def _refuse_what_runs_already(runs: Sequence[TrainingRun]) -> None:
    """Two jobs in one folder would overwrite each other's checkpoints."""
    for run in runs:
        if not (run.output_dir / "launch" / "run.json").exists():
            continue
        records = find_submissions(str(run.output_dir), run.output_dir)
        for job_id, state in job_states(records).items():
            if state not in OVER:
                raise ValueError(
                    f"output_dir: {run.output_dir} belongs to job {job_id}, which is {state}. Wait for it, "
                    f"cancel it (python -m launch.cancel {run.output_dir}), or choose another output_dir"
                )


def _base(runs: Sequence[TrainingRun]) -> Path:
    """The run's folder, or that of the sweep."""
    return runs[0].output_dir if len(runs) == 1 else runs[0].output_dir.parent


def _code_folder(config: LaunchConfig, base: Path) -> Path:
    if not config.snapshot:
        return ROOT
    return base / "launch" / "code" / time.strftime("%Y%m%d-%H%M%S")


if __name__ == "__main__":
    sys.exit(main())
