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
_TEXTS = ("name", "cluster", "job_id", "output_dir", "log", "code")


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
    if not all(isinstance(getattr(submission, name), str) for name in _TEXTS):
        raise ValueError(f"{file} is no record of a submission: {', '.join(_TEXTS)} must be text")
    own = file.parent.parent
    if (
        not _JOB_ID.fullmatch(str(submission.job_id))
        or Path(submission.output_dir).resolve() != own.resolve()
    ):
        raise ValueError(f"{file} is no record of a job in {own}: remove it")
    return submission


def all_submissions(folder: Path) -> tuple[list[Submission], list[str]]:
    """Everything submitted below ``folder / "runs"``, and what is wrong with records that can't be read."""
    files = [*(folder / "runs").glob(f"*/{_FILE}"), *(folder / "runs").glob(f"*/*/{_FILE}")]
    found, wrong = [], []
    for file in sorted(files):
        try:
            found.append(_read(file))
        except ValueError as error:
            wrong.append(str(error))
    return found, wrong


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
    pid = int(submission.job_id)
    if submission.started is None or process_start(pid) != submission.started:
        return False
    # By its command line it must be a controller, and of this very run: a record may name any process.
    command = command_of(pid)
    controlled = command[-1:] and Path(command[-1]).resolve() in _log_folders(submission)
    return bool(controlled) and command[1:3] == ["-m", "submitit.local._local"]


def _log_folders(submission: Submission) -> tuple[Path, Path]:
    """Where a run's job keeps its logs: in the run's folder, or in that of its sweep."""
    run = Path(submission.output_dir).resolve()
    return run / "launch" / "logs", run.parent / "launch" / "logs"


def cancel_job(submission: Submission) -> None:
    """Ends a job for good; training saves a checkpoint first if the cluster leaves it the time.

    Raises:
        ValueError: SLURM's job of that number is not this run's.
        CalledProcessError: scancel refuses.
    """
    if submission.cluster == "slurm":
        _check_owner(submission)
        subprocess.run(["scancel", submission.job_id], check=True)
    elif is_alive(submission):
        os.kill(int(submission.job_id), signal.SIGTERM)


def _check_owner(submission: Submission) -> None:
    """Raises a ``ValueError`` unless SLURM's job writes its log into this run's folder: a record may name any job."""
    output = _ask(["scontrol", "show", "job", "--oneliner", submission.job_id])
    logs = [
        Path(found).parent.resolve()
        for found in re.findall(r" StdOut=(.*?)(?: \w+=|$)", output, re.MULTILINE)
    ]
    if not logs or any(folder not in _log_folders(submission) for folder in logs):
        raise ValueError(
            f"job {submission.job_id} is not of the run in {submission.output_dir}: its log is "
            f"{', '.join(map(str, logs)) or 'not known'}. Nothing is cancelled; if the job is yours to end: "
            f"scancel {submission.job_id}"
        )


def _squeue(job_ids: set[str]) -> dict[str, str]:
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r"]
    lines = (line.split(maxsplit=2) for line in _ask(command).splitlines())
    states = {words[0]: words[1] for words in lines if len(words) > 1}
    return {job_id: states.get(job_id, "GONE") for job_id in job_ids}


def _ask(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", errors="replace"
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"{command[0]} cannot be asked about jobs: {getattr(error, 'stderr', error) or error}"
        ) from error
