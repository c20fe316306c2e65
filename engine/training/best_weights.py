"""The weights with the highest value of something that is measured on held-out clips during training.

``RUN/best/step_00000120.safetensors`` are those of a step whose value was above all before it. A run that goes back to
a checkpoint forgets what came later and finds the same again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from atomic import write_atomically
from engine.checkpoints.folder import find_checkpoints
from engine.checkpoints.weights import save_weights
from engine.records.runlog import RunLog, logger
from engine.training.trainer import Evaluate

#: ``of``: which value of which held-out set; ``values``: ``[step, value]`` of the steps that were the best so far.
_VALUES = "values.json"


class _Best(NamedTuple):
    """What `_VALUES` holds."""

    of: dict[str, str]
    values: list[tuple[int, float]]


class BestWeights:
    """Evaluates, and keeps the weights where the value is the highest so far; a hook that forgets what was undone.

    Args:
        metric: The name of the value, such as ``val/emotion/weighted_f1``.
        measured_on: Fingerprint of the held-out set. If a run goes on with another set or metric, the search for the
            best begins anew, since their values can't be compared.
        run: The run's folder.
        evaluate: What measures it.
        is_main: Whether this process writes.
    """

    def __init__(self, metric: str, measured_on: str, run: Path, evaluate: Evaluate, is_main: bool) -> None:
        self.metric, self.folder, self.run = metric, run / "best", run
        self._of = {"metric": metric, "set": measured_on}
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
        found = _read(self.folder)
        for later, _ in found.values:
            if later > step:
                _file(self.folder, later).unlink(missing_ok=True)
        if found.values:
            self._write(_Best(found.of, [entry for entry in found.values if entry[0] <= step]))

    def due(self, step: int) -> bool:
        """See `Hook.due`: never, since evaluations come to it by themselves."""
        return False

    def update(self, model: nn.Module, step: int) -> None:
        """See `Hook.update`."""

    def _note(self, model: nn.Module, step: int, value: float) -> None:
        stored = _read(self.folder)
        others = [] if stored.of == self._of else [earlier for earlier, _ in stored.values if earlier < step]
        found = [] if others else [entry for entry in stored.values if entry[0] < step]
        if math.isnan(value) or (found and value <= found[-1][1]):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_weights(model, _file(self.folder, step))
        self._write(_Best(self._of, [*found, (step, value)]))
        if others:
            logger.warning("best: the metric or data.val was changed; the search begins anew")
        for earlier in others:
            _file(self.folder, earlier).unlink(missing_ok=True)
        logger.info("best %s so far: %.4f in step %d", self.metric, value, step)
        checkpoints = find_checkpoints(self.run)
        oldest = checkpoints[0].state.step if checkpoints else 0
        before = [earlier for earlier, _ in found if earlier <= oldest]
        for earlier in before[:-1]:  # a run that goes back to its oldest checkpoint needs the last of these
            _file(self.folder, earlier).unlink(missing_ok=True)

    def _write(self, best: _Best) -> None:
        write_atomically(self.folder / _VALUES, json.dumps(best._asdict()) + "\n")


def best_file(run: Path) -> Path | None:
    """The best weights of a run so far; None where there are none."""
    found = _read(run / "best").values
    return _file(run / "best", found[-1][0]) if found else None


def _file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.safetensors"


def _read(folder: Path) -> _Best:
    path = folder / _VALUES
    if not path.is_file():
        return _Best({}, [])
    try:
        stored = json.loads(path.read_bytes())
        if isinstance(stored, list):  # of an earlier version, which did not say what they are of
            stored = {"of": {}, "values": stored}
        return _Best(dict(stored["of"]), [(int(step), float(value)) for step, value in stored["values"]])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): bring it back from a copy, or remove {folder}"
        ) from error
