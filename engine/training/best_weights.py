"""The weights with the highest value of something that is measured on held-out clips during training.

``RUN/best/step_00000120.safetensors`` are those of a step whose value was above all before it. A run that goes back to
a checkpoint forgets what came later and finds the same again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import nn

from atomic import write_atomically
from engine.training.checkpoint import find_checkpoints, save_weights
from engine.training.runlog import RunLog, logger
from engine.training.trainer import Evaluate

#: The values of the steps that were the best so far, as ``[step, value]``.
_VALUES = "values.json"


class BestWeights:
    """Evaluates, and keeps the weights where the value is the highest so far; a hook that forgets what was undone.

    Args:
        metric: The name of the value, such as ``val/emotion/weighted_f1``.
        run: The run's folder.
        evaluate: What measures it.
        is_main: Whether this process writes.
    """

    def __init__(self, metric: str, run: Path, evaluate: Evaluate, is_main: bool) -> None:
        self.metric, self.folder, self.run = metric, run / "best", run
        self.evaluate, self.is_main = evaluate, is_main

    def __call__(self, objective: Any, step: int, log: RunLog) -> dict[str, float]:
        """What is measured; see `engine.training.trainer.Evaluate`.

        Raises:
            ValueError: Nothing of this name is measured.
        """
        values = self.evaluate(objective, step, log)
        if self.metric not in values:
            raise ValueError(
                f"best is {self.metric!r}, and measured are {', '.join(values)}: name one of these"
            )
        if self.is_main:
            self._note(objective.model, step, values[self.metric])
        return values

    def check(self, step: int, total_steps: int) -> None:
        """See `Hook.check`."""

    def discard_after(self, step: int) -> None:
        """See `Hook.discard_after`."""
        found = _values(self.folder)
        for later, _ in found:
            if later > step:
                _file(self.folder, later).unlink(missing_ok=True)
        if found:
            self._write([entry for entry in found if entry[0] <= step])

    def due(self, step: int) -> bool:
        """See `Hook.due`: never, since evaluations come to it by themselves."""
        return False

    def update(self, model: nn.Module, step: int) -> None:
        """See `Hook.update`."""

    def _note(self, model: nn.Module, step: int, value: float) -> None:
        found = [entry for entry in _values(self.folder) if entry[0] < step]
        if math.isnan(value) or (found and value <= found[-1][1]):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(model, _file(self.folder, step))
        self._write([*found, (step, value)])
        logger.info("best %s so far: %.4f in step %d", self.metric, value, step)
        checkpoints = find_checkpoints(self.run)
        oldest = checkpoints[0].state.step if checkpoints else 0
        before = [earlier for earlier, _ in found if earlier <= oldest]
        for earlier in before[:-1]:  # a run that goes back to its oldest checkpoint needs the last of these
            _file(self.folder, earlier).unlink(missing_ok=True)

    def _write(self, values: list[tuple[int, float]]) -> None:
        write_atomically(self.folder / _VALUES, json.dumps(values) + "\n")


def best_file(run: Path) -> Path | None:
    """The best weights of a run so far; None where there are none."""
    found = _values(run / "best")
    return _file(run / "best", found[-1][0]) if found else None


def _file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.safetensors"


def _values(folder: Path) -> list[tuple[int, float]]:
    path = folder / _VALUES
    if not path.is_file():
        return []
    try:
        return [(int(step), float(value)) for step, value in json.loads(path.read_bytes())]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): bring it back from a copy, or remove {folder}"
        ) from error
