"""Fusion of sound, frames and text as a run on labelled clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from datasets.loading.sampling import class_counts, subset_rows
from engine.checkpoints.folder import find_checkpoints
from engine.checkpoints.weights import load_weights
from engine.evaluation.fusion import FusionEvaluation, measured, scored, subset_scores, subsets
from engine.evaluation.predictions import Predictions, predict_with
from engine.objectives.base import Objective
from engine.objectives.fusion import FusionObjective, Head, HeadConfig, heads_of
from engine.parallel.world import World
from engine.records.runlog import RunLog, logger
from engine.tasks.classifier_task import frozen_parts
from engine.tasks.finetune_config import FusionRunConfig
from engine.tasks.labelled_sets import LabelledSet, labelled_loader
from engine.tasks.labelled_task import LabelledTask
from engine.tasks.predictor import Predictor
from models import parameter_count
from models.fusion import FusionModel, build_towers, keep_towers, kept_towers

#: In a run's folder: what makes its towers again when their sources are gone.
TOWERS = "towers"


class FusionTask(LabelledTask[FusionRunConfig, FusionObjective]):
    """See `LabelledTask`."""

    def check_labels(self, sets: Sequence[LabelledSet]) -> None:
        """See `LabelledTask.check_labels`: of a head with cross-entropy a clip has one class or none.

        Raises:
            ValueError: Also where no training clip has anything of a modality.
        """
        self._check_modalities(sets)
        for name, head in heads_of(self.config.objective, sets[0].classes).items():
            total = sum(self._check_head(name, head, train) for train in sets)
            empty = [
                label
                for label, count in zip(head.classes, self._counts(head, sets), strict=True)
                if not count
            ]
            if empty:
                logger.warning("head %s: no training clip is %s", name, ", ".join(empty[:8]))
            if not total:
                raise ValueError(f"objective.heads: no training clip has a label of {name}")

    def _check_modalities(self, sets: Sequence[LabelledSet]) -> None:
        counts = {
            "audio": sum(train.table.num_with_audio for train in sets),
            "visual": sum(train.table.num_with_frames for train in sets),
            "text": sum(train.table.num_with_text for train in sets),
        }
        places = ", ".join(train.shown for train in sets)
        for name in self.config.model.present:
            if not counts[name]:
                raise ValueError(
                    f"model.modalities names {name}, and no clip of {places} has any: leave it out, or prepare clips "
                    "that have it (docs/data.md)"
                )

    def _check_head(self, name: str, head: Head, train: LabelledSet) -> int:
        """Clips of a set that have a label of the head."""
        rows = subset_rows(train.table, self.config.sampling.max_clips, self.config.seed)
        own = np.concatenate([[0], np.cumsum(np.isin(train.table.label_ids, head.columns))])
        offsets = np.asarray(train.table.label_offsets).astype(np.int64)
        count = (own[offsets[1:]] - own[offsets[:-1]])[rows]
        if head.config.loss == "cross_entropy" and (count > 1).any():
            row = int(rows[count > 1][0])
            raise ValueError(
                f"objective.heads: {name} has the loss cross_entropy, which needs one class a clip, and "
                f"{int((count > 1).sum())} clips of {train.shown} have several, such as {train.table.id(row)!r}; "
                "use bce"
            )
        return int((count > 0).sum())

    def _counts(self, head: Head, sets: Sequence[LabelledSet]) -> NDArray[np.int64]:
        """(C,) training clips of each class."""
        every = [
            class_counts(
                train.table, subset_rows(train.table, self.config.sampling.max_clips, self.config.seed)
            )
            for train in sets
        ]
        return np.sum(every, axis=0)[list(head.columns)]

    def build(self, sets: Sequence[LabelledSet], resumed: bool, world: World) -> FusionObjective:
        """See `LabelledTask.build`."""
        kept = world.from_main(self._kept) if resumed else {}
        objective = self._objective(sets[0].classes, kept)
        balanced = {
            name: balanced_weights(self._counts(head, sets))
            for name, head in objective.heads.items()
            if head.config.balanced
        }
        objective.heads |= {n: replace(objective.heads[n], weights=w) for n, w in balanced.items()}
        if self.config.init is not None and not resumed:
            self._load(objective.model, Path(self.config.init))
        return objective

    def _objective(self, classes: Sequence[str], kept: Mapping[str, Path]) -> FusionObjective:
        config = self.config
        torch.manual_seed(config.seed)
        towers = build_towers(config.model, config.fbank, kept)
        heads = heads_of(config.objective, classes)
        model = FusionModel(config.model, towers, {name: head.shape for name, head in heads.items()})
        return FusionObjective(model, config.fbank, config.objective, heads)

    def _kept(self) -> dict[str, Path]:
        return kept_towers(self.run / TOWERS)

    @staticmethod
    def _load(model: FusionModel, source: Path) -> None:
        try:
            model.load_state_dict(load_weights(source))
        except RuntimeError as error:
            raise ValueError(f"{source} holds no weights of this model: {str(error)[:500]}") from None

    def keep(self, objective: FusionObjective) -> None:
        """See `LabelledTask.keep`: the towers' settings and tokenizer."""
        if not find_checkpoints(self.run):
            keep_towers(objective.model.towers, self.run / TOWERS)  # type: ignore[arg-type]  # Towers all

    def needs(self, objective: FusionObjective) -> ClipNeeds:
        """See `LabelledTask.needs`."""
        return objective.needs()

    def summary(self, objective: FusionObjective) -> str:
        """See `LabelledTask.summary`."""
        model = objective.model
        everything, trained = parameter_count(model, trainable_only=False), parameter_count(model)
        heads = ", ".join(f"{name} ({len(head.classes)})" for name, head in objective.heads.items())
        return (
            f"{self.config.model.fusion} fusion of {', '.join(objective.modalities)}; heads {heads}; {trained:,} of "
            f"{everything:,} weights are trained; frozen or not in use: {', '.join(frozen_parts(model)) or 'none'}"
        )

    def held_out(self, objective: FusionObjective, train: LabelledSet, world: World) -> HeldOutHeads:
        """See `LabelledTask.held_out`."""
        return HeldOutHeads(self.config, objective, train, world)

    def final(
        self, objective: FusionObjective, train: LabelledSet, world: World, step: int, config_yaml: str
    ) -> FusionEvaluation:
        """See `LabelledTask.final`."""
        return FusionEvaluation(self.config, train, world, self.run, step, config_yaml)

    def trained(
        self, source: str, own: bool, train: LabelledSet, world: World
    ) -> tuple[FusionObjective, bool]:
        """See `LabelledTask.trained`."""
        objective = self._objective(train.classes, world.from_main(self._kept) if own else {})
        self._load(objective.model, Path(source))
        return objective, True

    def sketch(self) -> FusionObjective:
        """See `LabelledTask.sketch`."""
        config = self.config
        given = config.objective.heads or (HeadConfig(),)
        heads = {head.name: Head(head, ("first", "second"), (0, 1)) for head in given}
        kept = self._kept() if find_checkpoints(self.run) else {}
        towers = build_towers(config.model, config.fbank, kept)
        model = FusionModel(config.model, towers, {name: head.shape for name, head in heads.items()})
        return FusionObjective(model, config.fbank, config.objective, heads)

    def predictor(self, weights: Path, classes: list[str]) -> Predictor:
        """See `LabelledTask.predictor`."""
        objective = self._objective(classes, self._kept())
        self._load(objective.model, weights)
        return FusionPredictor(objective)


def balanced_weights(counts: NDArray[np.int64]) -> tuple[float, ...]:
    """``n / (C · n_class)``, as scikit-learn balances; of C those classes that have clips, 0 for the others."""
    there = counts > 0
    return tuple((there * counts.sum() / (max(1, there.sum()) * np.maximum(counts, 1))).tolist())


class HeldOutHeads:
    """What is measured on ``data.val`` during training: every head, with all modalities.

    Args:
        config: The run; ``data.val`` is set.
        objective: What is trained.
        train: The training set.
        world: The processes.
    """

    def __init__(
        self, config: FusionRunConfig, objective: FusionObjective, train: LabelledSet, world: World
    ) -> None:
        assert config.data.val is not None
        self._config, self._world = config, world
        self._loader = labelled_loader(config, train, config.data.val, world, objective.needs())
        self._wanted: Mapping[str, tuple[str, ...]] = dict(
            [next(iter(subsets(objective.modalities).items()))]
        )

    def __call__(self, objective: Objective, step: int, log: RunLog) -> dict[str, float]:
        """``val/HEAD/METRIC``."""
        assert isinstance(objective, FusionObjective)
        predictions = predict_with(
            lambda batch: subset_scores(objective, batch, dict(self._wanted)),
            self._loader,
            self._world,
            self._config.data,
            bf16=self._config.train.parallel.uses_bf16(self._world.device),
        )
        return self._world.from_main(lambda: self._measure(objective, predictions))

    def _measure(self, objective: FusionObjective, predictions: Predictions | None) -> dict[str, float]:
        assert predictions is not None
        (subset,) = self._wanted
        values = {}
        for name, head in objective.heads.items():
            found = measured(*scored(predictions, head, f"{name}/{subset}"), head, 0)
            values |= {f"val/{name}/{metric}": value for metric, value in found.items()}
        return values


class FusionPredictor(Predictor):
    """A fusion model that predicts, from whatever modalities a clip has.

    Args:
        objective: With trained weights.
    """

    def __init__(self, objective: FusionObjective) -> None:
        super().__init__()
        self.objective = objective.eval()
        self.heads = {name: list(head.classes) for name, head in objective.heads.items()}
        self.needs = objective.needs()

    def takes(self, batch: AVBatch) -> Tensor:
        """See `Predictor.takes`."""
        return torch.stack(list(self.objective.present(batch).values()), 1).any(1)

    @torch.no_grad()
    def predict(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Predictor.predict`."""
        self.check(batch)
        return self.objective.model(self.objective.inputs(batch)).probabilities
