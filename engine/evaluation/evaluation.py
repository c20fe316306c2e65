"""What every evaluation at the end of a run on labelled clips has: it is done once, and may be stopped."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets.batch import AVBatch
from engine.evaluation.files import read_report
from engine.objectives.base import Objective
from engine.parallel.world import World
from engine.tasks.finetune_config import LabelledConfig
from engine.tasks.labelled_sets import LabelledSet
from engine.training.stop import until_stopped

C = TypeVar("C", bound=LabelledConfig)
O = TypeVar("O", bound=Objective[Any])  # noqa: E741


class Evaluation(ABC, Generic[C, O]):
    """Evaluates weights on ``config.evaluation_shards`` and writes ``RUN/evaluation/NAME/``.

    Args:
        config: The run.
        train: The training set, whose vocabulary holds.
        world: The processes.
        run: The run's folder.
        step: Steps taken, for TensorBoard.
        config_yaml: The resolved config: an evaluation of the same step with the same config is not done again.
    """

    def __init__(
        self, config: C, train: LabelledSet, world: World, run: Path, step: int, config_yaml: str
    ) -> None:
        assert config.evaluation_shards is not None
        self.config_yaml = config_yaml
        self._identity = {"step": step, "config_sha256": hashlib.sha256(config_yaml.encode()).hexdigest()}
        self.config, self.train, self.world, self.run, self.step = config, train, world, run, step
        self.shards = config.evaluation_shards
        self.bf16 = config.train.parallel.uses_bf16(world.device)

    def is_done(self, name: str) -> bool:
        """Whether an earlier attempt has finished this very evaluation; every rank calls it and gets the same."""
        report = self.world.from_main(lambda: read_report(self.run / "evaluation" / name))
        return report is not None and report.get("of") == self._identity

    @abstractmethod
    def __call__(self, objective: O, name: str, *, classify: bool = True) -> dict[str, Any]:
        """Every rank calls it.

        Args:
            objective: With the weights to evaluate.
            name: For the files: which weights these are.
            classify: Whether the head is trained; without it only frozen features are measured.

        Returns:
            What ``metrics.json`` holds; on other ranks than the main one an empty mapping.

        Raises:
            StoppedError: A signal has come; nothing is written.
        """

    def _until_stopped(self, batches: Iterable[AVBatch]) -> Iterator[AVBatch]:
        return until_stopped(
            batches, self.world, "in the evaluation, which begins again where this part began"
        )
