"""Which job trains which run: a small file in the run's folder, by which to find jobs again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.files import read_json, write_json
from launch.torchrun import command_of, process_start

_JOB_ID = re.compile(r"[1-9]\d{0,18}(_\d{1,9})?")
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
        found = [_read(file) for file in records if file.is_file()]
        if found:
            return found
    raise ValueError(
        f"no run {name!r}: neither {folder / name} nor {folder / 'runs' / name} holds {_FILE}. Give a run's "
        "folder, or its name below runs/"
    )


def _read(file: Path) -> Submission:
    """A record of a run's folder, which may have come from others.

    Raises:
        ValueError: It is none, or of another folder: its job would be taken for this run's.
    """
    value = read_json(file) or {}
    try:
        submission = Submission(**value)
    except TypeError as error:
        raise ValueError(f"{file} is no record of a submission: {error}") from error
    own = file.parent.parent
    if (
        not _JOB_ID.fullmatch(str(submission.job_id))
        or Path(submission.output_dir).resolve() != own.resolve()
    ):
        raise ValueError(f"{file} is no record of a job in {own}: remove it")
    return submission


def all_submissions(folder: Path) -> list[Submission]:
    """Everything submitted below ``folder / "runs"``."""
    files = [*(folder / "runs").glob(f"*/{_FILE}"), *(folder / "runs").glob(f"*/*/{_FILE}")]
    return [_read(file) for file in sorted(files)]


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
    pid, logs = int(submission.job_id), Path(submission.output_dir).resolve() / "launch" / "logs"
    if submission.started is None or process_start(pid) != submission.started:
        return False
    # By its command line it must be a controller, and of this very run: a record may name any process.
    command = command_of(pid)
    controlled = command[-1:] and Path(command[-1]).resolve() in (logs, logs.parents[2] / "launch" / "logs")
    return bool(controlled) and command[1:3] == ["-m", "submitit.local._local"]


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
