"""Following a submitted run's log until its job is over."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from launch.files import last_line
from launch.progress import EXIT_RERUN, read_status
from launch.registry import Submission, job_states
from launch.status import OVER, describe

#: Seconds between looks at the log, and looks (of the log) between questions to the cluster.
_PAUSE, _LOOKS = 1.0, 5


def follow(record: Submission) -> int:
    """Copies the first node's log to standard output as it grows; Ctrl-C only ends the following.

    Returns:
        0 for a finished run, 75 for one that stopped and was not run again, 1 for a failure.
    """
    log, position, over = Path(record.log), 0, False
    try:
        while not over:
            for _ in range(_LOOKS):
                position = _copy(log, position)
                time.sleep(_PAUSE)
            over = job_states([record])[record.job_id] in OVER
    except KeyboardInterrupt:
        print(
            f"\nno longer following; the job goes on. To end it: python -m launch.cancel {record.output_dir}"
        )
        return 0
    _copy(log, position)
    print(describe(record, "over", in_full=True))
    return _exit_code(Path(record.output_dir))


def _copy(log: Path, position: int) -> int:
    if not log.exists():
        return position
    with log.open("rb") as file:
        file.seek(position)
        data = file.read()
    sys.stdout.write(data.decode(errors="replace"))
    sys.stdout.flush()
    return position + len(data)


def _exit_code(run: Path) -> int:
    try:
        history, status = last_line(run / "launch" / "history.jsonl"), read_status(run)
    except ValueError:  # what `describe` has said
        return 1
    if history is not None and history.get("action") == "finish":
        return 0
    return EXIT_RERUN if status is not None and status.state == "stopped" else 1
