"""Which job trains which run: a small file in the run's folder, by which to find jobs again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.files import read_json, write_json
from launch.torchrun import process_start

_FILE = Path("launch") / "run.json"


@dataclass(frozen=True)
class Submission:
    """One submitted run.

    Attributes:
        name: Job name.
        cluster: ``slurm``, ``local`` or ``debug``.
        job_id: SLURM's id, with the index in an array; for ``local`` the controller's process id.
        output_dir: The run's folder.
        log: Log of the first node; those of the others lie beside it.
        code: The code it runs.
        command: The training command.
        started: For ``local``, when the controller started, in clock ticks since boot: tells it from a later
            process of the same number.
    """

    name: str
    cluster: str
    job_id: str
    output_dir: str
    log: str
    code: str
    command: list[str] = field(default_factory=list)
    started: int | None = None

    def write(self) -> None:
        """Leaves the record in the run's folder."""
        write_json(Path(self.output_dir) / _FILE, asdict(self))


def find_submissions(name: str, folder: Path) -> list[Submission]:
    """The submissions of a run or a sweep.

    Args:
        name: A run's folder, or its name below ``folder / "runs"``.
        folder: What relative paths are relative to.

    Raises:
        ValueError: Nothing of that name was submitted.
    """
    for base in (folder / name, folder / "runs" / name):
        records = [base / _FILE, *sorted(base.glob(f"*/{_FILE}"))]
        found = [Submission(**value) for value in map(read_json, records) if value is not None]
        if found:
            return found
    raise ValueError(
        f"no run {name!r}: neither {folder / name} nor {folder / 'runs' / name} holds {_FILE}. Give a run's "
        "folder, or its name below runs/"
    )


def all_submissions(folder: Path) -> list[Submission]:
    """Everything submitted below ``folder / "runs"``."""
    files = [*(folder / "runs").glob(f"*/{_FILE}"), *(folder / "runs").glob(f"*/*/{_FILE}")]
    values = (read_json(file) for file in sorted(files))
    return [Submission(**value) for value in values if value is not None]


def job_states(submissions: Iterable[Submission]) -> dict[str, str]:
    """The cluster's word on each job by id: ``RUNNING``, ``PENDING``, … or ``GONE`` for one it knows no more.

    Asks squeue, which needs no accounting database.

    Raises:
        ValueError: squeue cannot be asked.
    """
    submissions = list(submissions)
    states = {s.job_id: "RUNNING" if is_alive(s) else "GONE" for s in submissions if s.cluster != "slurm"}
    in_slurm = {s.job_id for s in submissions if s.cluster == "slurm"}
    return states | (_squeue(in_slurm) if in_slurm else {})


def is_alive(submission: Submission) -> bool:
    """Whether a local job's controller still runs."""
    return submission.started is not None and process_start(int(submission.job_id)) == submission.started


def cancel_job(submission: Submission) -> None:
    """Ends a job for good; training saves a checkpoint first if the cluster leaves it the time."""
    if submission.cluster == "slurm":
        subprocess.run(["scancel", submission.job_id], check=True)
    elif is_alive(submission):
        os.kill(int(submission.job_id), signal.SIGTERM)


def _squeue(job_ids: set[str]) -> dict[str, str]:
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r"]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"squeue cannot be asked about jobs: {getattr(error, 'stderr', error) or error}"
        ) from error
    lines = (line.split(maxsplit=2) for line in output.splitlines())
    states = {words[0]: words[1] for words in lines if len(words) > 1}
    return {job_id: states.get(job_id, "GONE") for job_id in job_ids}
