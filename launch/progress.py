"""What a run says of itself: its ``status.json`` and its complete checkpoints.

These two, and the exit status 75, are all that the launcher knows of the training code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.files import read_json

#: The exit status by which training says "saved; run me again" (EX_TEMPFAIL of sysexits.h).
EXIT_RERUN = 75

_CHECKPOINT = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class RunStatus:
    """One reading of ``status.json``.

    Attributes:
        state: ``running``, ``evaluating`` (after the last step), ``finished``, ``stopped`` (saved on request) or
            ``failed``.
        phase: What a running one is at, or a stopped one was.
        step: Steps done.
        total_steps: Steps of the whole run.
        evaluated: Parts of the evaluation after the last step that are done.
        message: What the run last said.
        stamp: Changes with every writing of the file, so that an old word is told from a new one.
    """

    state: str
    phase: str
    step: int
    total_steps: int
    evaluated: int
    message: str
    stamp: tuple[int, int]


def read_status(output_dir: Path) -> RunStatus | None:
    """The run's own word, or None where it has not spoken yet.

    Raises:
        ValueError: ``status.json`` is damaged.
    """
    path = output_dir / "status.json"
    value = read_json(path)
    if value is None:
        return None
    stat = path.stat()
    return RunStatus(
        state=str(value.get("state", "")),
        phase=str(value.get("phase", "")),
        step=_count(path, value, "step"),
        total_steps=_count(path, value, "total_steps"),
        evaluated=_count(path, value, "evaluated"),
        message=str(value.get("message", "")),
        stamp=(stat.st_mtime_ns, stat.st_ino),
    )


def _count(path: Path, value: dict[str, Any], name: str) -> int:
    count = value.get(name, 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 1 << 63:
        raise ValueError(f"{path} is damaged ({name} is {str(count)[:40]!r}, no count): remove it")
    return count


def newest_checkpoint(output_dir: Path) -> int | None:
    """Step of the newest complete checkpoint, or None. Only complete ones bear such a name."""
    folder = output_dir / "checkpoints"
    if not folder.is_dir():
        return None
    matches = (_CHECKPOINT.fullmatch(entry.name) for entry in folder.iterdir())
    return max((int(match[1]) for match in matches if match), default=None)


def progress(output_dir: Path) -> tuple[int, int]:
    """How far a run is: step of its newest checkpoint (-1 without one), and 1 + parts evaluated once it is at that.

    A stay on the cluster that leaves it as it was has gained nothing. A damaged ``status.json`` tells of no evaluation.
    """
    step = newest_checkpoint(output_dir)
    try:
        status = read_status(output_dir)
    except ValueError:
        status = None
    evaluating = status is not None and status.phase == "evaluating"
    return -1 if step is None else step, 1 + status.evaluated if status is not None and evaluating else 0
