"""The mean of the weights at the ends of several epochs, as the published fine-tuning results use it.

``RUN/average/epoch_0007.safetensors`` is the mean over the epochs from the first one wanted to the 7th. Each
file is made from the one before and the weights of the moment, so a run that goes back to a checkpoint makes
the same files again; those that the oldest checkpoint cannot need any more are taken away.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from atomic import write_atomically
from datasets.untrusted import shown
from engine.checkpoints.folder import find_checkpoints
from models.weights.tensor_files import write_safetensors

_NAME = re.compile(r"^epoch_(\d{4,})\.safetensors$")
#: Stored with the averages: the epoch that they begin with.
_FIRST = "first_epoch.txt"


@dataclass(frozen=True)
class AveragingConfig:
    """Which epochs' final weights are averaged.

    Attributes:
        first_epoch: The first of them, counted from 1; null averages nothing.
        last_epoch: The last; null is the last of the run.
    """

    first_epoch: int | None = None
    last_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.first_epoch is not None and self.first_epoch < 1:
            raise ValueError(f"averaging.first_epoch is {self.first_epoch}: epochs count from 1")
        if self.last_epoch is not None and self.last_epoch < (self.first_epoch or 1):
            raise ValueError(
                f"averaging.last_epoch is {self.last_epoch}: it comes before averaging.first_epoch, which is "
                f"{self.first_epoch}"
            )


class WeightAverage:
    """Keeps the running mean in a run's folder; only the main rank writes.

    Args:
        config: Which epochs; ``first_epoch`` is set.
        run: The run's folder.
        steps_per_epoch: May be a fraction. Epoch e ends with step ``floor(e · steps_per_epoch)``.
    """

    def __init__(self, config: AveragingConfig, run: Path, steps_per_epoch: float) -> None:
        self.config, self.run, self.steps_per_epoch = config, run, steps_per_epoch

    def due(self, step: int) -> bool:
        """Whether an epoch to be averaged ends with ``step``."""
        return self._epoch_that_ends(step) is not None

    def check(self, step: int, total_steps: int) -> None:
        """Makes sure that a run of ``total_steps`` that goes on at ``step`` will have what it averages.

        Raises:
            ValueError: It ends before the first epoch wanted, or that one is past and was not kept or was averaged from
                another epoch on.
        """
        first = self.config.first_epoch
        assert first is not None
        if self._end(first) > total_steps:
            raise ValueError(
                f"averaging.first_epoch is {first}, but the run ends with step {total_steps}, after "
                f"{total_steps / self.steps_per_epoch:.3g} epochs: nothing would be averaged; lower it, or set it to "
                "null"
            )
        last = self.config.last_epoch or math.inf
        done = first - 1
        while done < last and self._end(done + 1) <= step:
            done += 1
        if done < first:
            return
        if not self._path(done).is_file():
            raise ValueError(
                f"averaging.first_epoch is {first}, but {self.run} is at step {step} and has no mean of the weights "
                f"up to epoch {done} ({self._path(done).name}); set it to {done + 1} or later, or to null"
            )
        _open(self._path(done), done)
        file = self.run / "average" / _FIRST
        began = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None
        if began not in (None, str(first)):  # earlier versions did not say
            raise ValueError(
                f"averaging.first_epoch is {first}, but the mean in {self._path(done)} begins with epoch "
                f"{shown(began, 20)} in {_FIRST}; set it back, to {done + 1} or later, or to null"
            )

    def update(self, model: nn.Module, step: int) -> None:
        """Takes the weights of ``model`` after ``step`` into the mean."""
        epoch = self._epoch_that_ends(step)
        assert epoch is not None
        assert self.config.first_epoch is not None
        count = epoch - self.config.first_epoch + 1
        mean = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
        if count > 1:
            before = _open(self._path(epoch - 1), epoch - 1)
            mean = {name: before[name].lerp(value, 1 / count) for name, value in mean.items()}
        write_safetensors(self._path(epoch), mean)
        write_atomically(self.run / "average" / _FIRST, f"{self.config.first_epoch}\n")
        self._prune()

    def at(self, step: int) -> Path | None:
        """The mean over all epochs that are done with ``step``, or None before the first."""
        last = self.config.last_epoch or math.inf
        found = {e: path for e, path in self._files().items() if e <= last and self._end(e) <= step}
        return found[max(found)] if found else None

    def discard_after(self, step: int) -> None:
        """Removes the means of epochs that end later."""
        for epoch, path in self._files().items():
            if self._end(epoch) > step:
                path.unlink()

    def _epoch_that_ends(self, step: int) -> int | None:
        first, last = self.config.first_epoch, self.config.last_epoch
        if first is None:
            return None
        nearest = round(step / self.steps_per_epoch)
        for epoch in (nearest, nearest + 1):
            wanted = first <= epoch and (last is None or epoch <= last)
            if wanted and step == self._end(epoch):
                return epoch
        return None

    def _end(self, epoch: int) -> int:
        """The step with which an epoch ends."""
        return max(1, int(epoch * self.steps_per_epoch))

    def _path(self, epoch: int) -> Path:
        return self.run / "average" / f"epoch_{epoch:04d}.safetensors"

    def _files(self) -> dict[int, Path]:
        matches = ((_NAME.match(path.name), path) for path in (self.run / "average").glob("*"))
        return {int(match[1]): path for match, path in matches if match}

    def _prune(self) -> None:
        """Keeps the mean at the oldest checkpoint and all later ones."""
        checkpoints = find_checkpoints(self.run)
        oldest = checkpoints[0].state.step if checkpoints else 0
        needed = [epoch for epoch in self._files() if int(epoch * self.steps_per_epoch) <= oldest]
        for epoch, path in self._files().items():
            if epoch < max(needed, default=0):
                path.unlink()


def _open(path: Path, epoch: int) -> dict[str, Tensor]:
    """A mean.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): bring it back from a copy, or set averaging.first_epoch to {epoch + 1} or "
            "later, or to null"
        ) from error
