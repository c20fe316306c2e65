"""``python -m launch.cancel NAME …``: ends runs or sweeps. What is saved stays and can be resumed."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from home_paths import command_line
from launch.registry import cancel_job, find_submissions, job_states
from launch.status import OVER
from terminal import show_control_characters


def main(arguments: list[str] | None = None) -> int:
    """Cancels what is named and says which jobs those were."""
    show_control_characters()
    parser = argparse.ArgumentParser(prog="python -m launch.cancel", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a run's folder, or its name below runs/")
    try:
        found = [
            s
            for name in parser.parse_args(command_line(arguments)).names
            for s in find_submissions(name, Path.cwd())
        ]
        states = job_states(found)
        for submission in found:
            if states[submission.job_id] in OVER:
                print(f"{submission.output_dir}: job {submission.job_id} is over already")
                continue
            cancel_job(submission)
            print(f"{submission.output_dir}: job {submission.job_id} cancelled")
    except (ValueError, subprocess.CalledProcessError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
