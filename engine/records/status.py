"""``status.json``: what a run last said of itself, for people, for scripts and for the launcher.

``state`` is ``running`` (``phase`` says what it is at: starting, training), ``evaluating`` (the evaluation after the
last step), ``finished``, ``stopped`` (on request; run the same command again) or ``failed``, with a ``message``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from atomic import write_atomically
from datasets.untrusted import parse_json, read_bounded

NAME = "status.json"
_EMPTY: dict[str, Any] = {
    "state": "",
    "phase": "",
    "step": 0,
    "total_steps": 0,
    "evaluated": 0,
    "message": "",
}
_LARGEST = 1 << 20  # bytes
#: When this process began: an older word is another's.
_STARTED = time.time()


def read_status(folder: Path) -> dict[str, Any]:
    """The state last written, with empty values where there is none that can be read."""
    try:
        found = parse_json(read_bounded(folder / NAME, _LARGEST))
    except (OSError, ValueError):
        found = {}
    return _EMPTY | (found if isinstance(found, dict) else {})


def update_status(folder: Path, **changes: Any) -> None:
    """Replaces the file; what ``changes`` do not name stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NAME, json.dumps(read_status(folder) | changes) + "\n")


def fail_status(folder: Path, message: str) -> None:
    """Says that the run failed, unless another process of it has said before why it ended.

    Where one is asked to stop while it starts, the others lose it, and fail.
    """
    path = folder / NAME
    ours = path.is_file() and path.stat().st_mtime >= _STARTED
    if not (ours and read_status(folder)["state"] in ("failed", "stopped")):
        update_status(folder, state="failed", message=message)
