"""``python -m launch.status [NAME …]``: what became of submitted runs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from home_paths import command_line
from launch.files import last_line
from launch.progress import newest_checkpoint, read_status
from launch.registry import Submission, all_submissions, find_submissions, job_states
from terminal import show_control_characters

#: SLURM's words for a job that will not run any more.
OVER = {
    "GONE", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE",
    "PREEMPTED", "BOOT_FAIL", "REVOKED",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Prints a paragraph for each run named, or a line for every run below ``runs/``."""
    show_control_characters()
    parser = argparse.ArgumentParser(prog="python -m launch.status", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a run's folder, or its name below runs/")
    names = parser.parse_args(command_line(arguments)).names
    try:
        folder = Path.cwd()
        found, wrong = [s for name in names for s in find_submissions(name, folder)], []
        if not names:
            found, wrong = all_submissions(folder)
        states = job_states(found)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for submission in found:
        print(describe(submission, states[submission.job_id], in_full=bool(names)))
    for problem in wrong:
        print(problem)
    return 0


def describe(submission: Submission, state: str, in_full: bool) -> str:
    """One run in words; of one whose files are damaged a line that says so.

    Args:
        submission: The run.
        state: The cluster's word on its job.
        in_full: With its history and where its log is.
    """
    try:
        return _describe(submission, state, in_full)
    except (ValueError, OSError) as error:
        name = Path(submission.output_dir).name
        return f"{name}  {submission.cluster} job {submission.job_id} {state}  not known: {error}"


def _describe(submission: Submission, state: str, in_full: bool) -> str:
    run = Path(submission.output_dir)
    status = read_status(run)
    step = f"step {status.step}/{status.total_steps} ({status.state})" if status else "not started"
    age = f", {_age(status.stamp[0] / 1e9)} ago" if status else ""
    line = f"{run.name}  {submission.cluster} job {submission.job_id} {state}  {step}{age}"
    if not in_full:
        return line
    parts = [
        line,
        f"  folder      {run}",
        f"  checkpoint  {newest_checkpoint(run)}",
        f"  log         {submission.log}",
    ]
    history = last_line(run / "launch" / "history.jsonl")
    if history is not None:
        ended = history.get("ended")
        age = f", {_age(ended)} ago" if isinstance(ended, int | float) and 0 <= ended < 1e12 else ""
        parts.append(f"  launcher    {history.get('action')}{age}: {history.get('message')}")
    return "\n".join(parts)


def _age(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
