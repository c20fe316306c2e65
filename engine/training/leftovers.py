"""What a killed attempt left of steps that the run now takes again: none of it may be taken for the run's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from engine.records.runlog import logger

_PICTURE = re.compile(r"_(\d{8,})\.png$")


def discard_later(run: Path, step: int) -> None:
    """Removes pictures and evaluations of later steps, and unfinished evaluations; one rank calls it.

    Records, TensorBoard's points and means of weights are their writers' to keep right.

    Args:
        run: The run's folder.
        step: Where it goes on; -1 where it begins.
    """
    later = [path for path in (run / "pictures").glob("*.png") if _step_of_picture(path) > step]
    for path in later:
        path.unlink()
    evaluations = [path for path in (run / "evaluation").glob("*/") if _step_of_evaluation(path) > step]
    for folder in evaluations:
        shutil.rmtree(folder)
    if later or evaluations:
        names = ", ".join(f"evaluation/{folder.name}" for folder in evaluations)
        logger.info(
            "removed what an interrupted attempt left of later steps: %d pictures %s", len(later), names
        )


def _step_of_picture(path: Path) -> float:
    match = _PICTURE.search(path.name)
    return int(match[1]) if match else -1


def _step_of_evaluation(folder: Path) -> float:
    """The step of an evaluation; infinity for one that was not finished, -1 for one that does not say."""
    try:
        of = json.loads((folder / "metrics.json").read_bytes()).get("of", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return float("inf")
    return of.get("step", -1)
