"""What differs between the kinds of runs on labelled clips; the program is `engine.tasks.finetune`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets.loading.config import ClipNeeds
from engine.evaluation.evaluation import Evaluation
from engine.objectives.base import Objective
from engine.parallel.world import World
from engine.tasks.finetune_config import LabelledConfig
from engine.tasks.labelled_sets import LabelledSet
from engine.tasks.predictor import Predictor
from engine.training.trainer import Evaluate

C = TypeVar("C", bound=LabelledConfig)
O = TypeVar("O", bound=Objective[Any])  # noqa: E741


class LabelledTask(ABC, Generic[C, O]):
    """A kind of run on labelled clips.

    Args:
        config: The run.
    """

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @abstractmethod
    def check_labels(self, sets: Sequence[LabelledSet]) -> None:
        """Makes sure, before anything is trained, that the labels are what the losses need.

        Raises:
            ValueError: They are not.
        """

    @abstractmethod
    def build(self, sets: Sequence[LabelledSet], resumed: bool, world: World) -> O:
        """The objective with its initial weights.

        Args:
            sets: The training sets.
            resumed: Whether the run has a checkpoint, from which all weights will be taken.
            world: The processes; every rank calls it.

        Raises:
            ValueError: The weights to begin with are missing or do not fit.
        """

    def begin(self, objective: O, train: LabelledSet, world: World) -> None:
        """What is done before the first step of a run that has no checkpoint; every rank calls it."""

    def keep(self, objective: O) -> None:
        """Writes into the run's folder what else building the model again needs; the main rank calls it."""

    @abstractmethod
    def needs(self, objective: O) -> ClipNeeds:
        """What is read of a training clip."""

    @abstractmethod
    def summary(self, objective: O) -> str:
        """What is trained on what, for the log."""

    @abstractmethod
    def held_out(self, objective: O, train: LabelledSet, world: World) -> Evaluate:
        """What is measured on ``data.val`` during training."""

    @abstractmethod
    def final(
        self, objective: O, train: LabelledSet, world: World, step: int, config_yaml: str
    ) -> Evaluation[C, O]:
        """What is measured at the end."""

    @abstractmethod
    def trained(self, source: str, own: bool, train: LabelledSet, world: World) -> tuple[O, bool]:
        """The objective with finished weights, to be evaluated.

        Args:
            source: Where they are.
            own: Whether they are this run's.
            train: The training set.
            world: The processes; every rank calls it.

        Returns:
            The objective, and whether there are heads among the weights.

        Raises:
            ValueError: They do not fit.
        """

    @abstractmethod
    def sketch(self) -> O:
        """The objective for estimates: its sizes are right, its weights need not be."""

    @abstractmethod
    def predictor(self, weights: Path, classes: list[str]) -> Predictor:
        """The trained model as something that predicts.

        Args:
            weights: A file of the run's plain weights.
            classes: The vocabulary that it was trained on.
        """
