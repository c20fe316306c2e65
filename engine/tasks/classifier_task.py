"""Fine-tuning the encoders of a pretraining run as a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from engine.checkpoints.weights import load_weights
from engine.evaluation.final import FinalEvaluation
from engine.evaluation.predictions import Predictions, batch_scores, predict
from engine.evaluation.scores import summary_scores
from engine.objectives.base import Objective
from engine.objectives.classification import Classification
from engine.parallel.world import World
from engine.records.runlog import RunLog, logger
from engine.tasks.encoder_weights import has_head, load_classifier_weights, load_encoder_weights
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.labelled_sets import LabelledSet, check_training_labels, clip_needs, held_out_loader
from engine.tasks.labelled_task import LabelledTask
from engine.tasks.predictor import Predictor
from engine.tasks.probe_head import fit_head
from models import AudioVisualClassifier, parameter_count

#: Classes of AudioSet, by which a run is estimated; the head is a thousandth of the model.
_CLASSES = 527
#: The one head's name where predictions go by head.
HEAD = "classes"


class ClassifierTask(LabelledTask[FinetuneConfig, Classification]):
    """See `LabelledTask`."""

    def check_labels(self, sets: Sequence[LabelledSet]) -> None:
        """See `LabelledTask.check_labels`."""
        check_training_labels(self.config, sets)

    def build(self, sets: Sequence[LabelledSet], resumed: bool, world: World) -> Classification:
        """See `LabelledTask.build`."""
        return build_classification(self.config, sets[0], resumed)

    def begin(self, objective: Classification, train: LabelledSet, world: World) -> None:
        """See `LabelledTask.begin`."""
        if self.config.fit_head:
            fit_head(self.config, objective.to(world.device), train, world)

    def needs(self, objective: Classification) -> ClipNeeds:
        """See `LabelledTask.needs`."""
        return clip_needs(self.config)

    def summary(self, objective: Classification) -> str:
        """See `LabelledTask.summary`."""
        config, model = self.config, objective.model
        everything, trained = parameter_count(model, trainable_only=False), parameter_count(model)
        frozen = ", ".join(frozen_parts(model)) or "none"
        return (
            f"{config.model.name} on {config.objective.modalities}, {model.head.out_features} classes; {trained:,} of "
            f"{everything:,} weights are trained; frozen or not in use: {frozen}"
        )

    def held_out(self, objective: Classification, train: LabelledSet, world: World) -> HeldOutScores:
        """See `LabelledTask.held_out`."""
        return HeldOutScores(self.config, train, world)

    def final(
        self, objective: Classification, train: LabelledSet, world: World, step: int, config_yaml: str
    ) -> FinalEvaluation:
        """See `LabelledTask.final`."""
        return FinalEvaluation(self.config, train, world, self.run, step, config_yaml)

    def trained(
        self, source: str, own: bool, train: LabelledSet, world: World
    ) -> tuple[Classification, bool]:
        """See `LabelledTask.trained`."""
        config = self.config
        model = _classifier(config, len(train.classes))
        classify, allow = has_head(source), () if own else config.init_allow
        if classify:
            load_classifier_weights(source, model, config.fbank, train.classes, allow)
        else:
            logger.info("%s has no head: only its frozen features are measured", source)
            load_encoder_weights(source, model.encoder, config.fbank, allow)
        return Classification(model, config.fbank, config.objective), classify

    def sketch(self) -> Classification:
        """See `LabelledTask.sketch`."""
        with FakeTensorMode():
            return Classification(
                _classifier(self.config, _CLASSES), self.config.fbank, self.config.objective
            )

    def predictor(self, weights: Path, classes: list[str]) -> Predictor:
        """See `LabelledTask.predictor`."""
        model = _classifier(self.config, len(classes))
        model.load_state_dict(load_weights(weights))
        objective = Classification(model, self.config.fbank, self.config.objective)
        needs = clip_needs(self.config, every_frame=self.config.evaluation.all_frames)
        return ClassifierPredictor(objective, classes, needs)


def _classifier(config: FinetuneConfig, num_classes: int) -> AudioVisualClassifier:
    return AudioVisualClassifier(config.model, num_classes, pool_separate=config.objective.pool_separate)


def build_classification(config: FinetuneConfig, train: LabelledSet, resumed: bool = False) -> Classification:
    """The objective with its initial weights: encoders (and head) of ``config.init``, the rest from the seed.

    Args:
        config: The run.
        train: The training set.
        resumed: Whether it has a checkpoint, from which all weights will be taken: ``config.init`` need not exist.

    Raises:
        WeightsError: The encoder of ``config.init`` does not fit, or with ``init_head`` its head.
    """
    torch.manual_seed(config.seed)
    model = _classifier(config, len(train.classes))
    if not resumed:
        if config.init is None:
            logger.info("no init: the encoders are randomly initialised")
        elif config.init_head:
            load_classifier_weights(config.init, model, config.fbank, train.classes, config.init_allow)
        else:
            load_encoder_weights(config.init, model.encoder, config.fbank, config.init_allow)
    return Classification(model, config.fbank, config.objective)


def frozen_parts(model: nn.Module) -> list[str]:
    """The parts of ``model`` that get no gradient, such as ``encoder.norm.audio``, each the largest that is whole."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return [""]
    found = [name for name, parameter in model.named_parameters(recurse=False) if not parameter.requires_grad]
    for name, part in model.named_children():
        if next(part.parameters(), None) is not None:
            found += [f"{name}.{inner}".rstrip(".") for inner in frozen_parts(part)]
    return found


class HeldOutScores:
    """What is measured on ``data.val`` during training: with the middle frame and all modalities trained on.

    Args:
        config: The run; ``data.val`` is set.
        train: The training set.
        world: The processes.
    """

    def __init__(self, config: FinetuneConfig, train: LabelledSet, world: World) -> None:
        assert config.data.val is not None
        self._config, self._world = config, world
        self._loader = held_out_loader(config, train, config.data.val, world, every_frame=False)

    def __call__(self, objective: Objective, step: int, log: RunLog) -> dict[str, float]:
        """mAP, mAUC, d′, top-1 and top-5."""
        assert isinstance(objective, Classification)
        bf16 = self._config.train.parallel.uses_bf16(self._world.device)
        predictions = predict(
            objective, self._loader, self._world, self._config.data, bf16=bf16, missing=False
        )
        return self._world.from_main(lambda: _held_out_scores(predictions))


def _held_out_scores(predictions: Predictions | None) -> dict[str, float]:
    assert predictions is not None
    (scores,) = predictions.scores.values()
    return {f"val/{name}": value for name, value in summary_scores(scores, predictions.labels).items()}


class ClassifierPredictor(Predictor):
    """A classifier that predicts. Of a clip that lacks one of two modalities it is given the other alone.

    Args:
        objective: With trained weights.
        classes: Of its head.
        needs: What is read of a clip.
    """

    def __init__(self, objective: Classification, classes: list[str], needs: ClipNeeds) -> None:
        super().__init__()
        self.objective = objective.eval()
        self.heads = {HEAD: classes}
        config = objective.config
        self.needs = replace(needs, partial=config.audio and config.visual)

    def takes(self, batch: AVBatch) -> Tensor:
        """See `Predictor.takes`."""
        heard, seen = self._heard_and_seen(batch)
        return heard | seen

    def _heard_and_seen(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """(B,) bool each, which clips have the sound and the frames that the model takes."""
        everything = torch.ones(len(batch), dtype=torch.bool, device=batch.rows.device)
        sound = everything if batch.num_samples is None else batch.num_samples > 0
        picture = everything if batch.num_stored is None else batch.num_stored > 0
        config = self.objective.config
        heard = sound & (config.audio and batch.waveform is not None)
        return heard, picture & (config.visual and batch.frames is not None)

    @torch.no_grad()
    def predict(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Predictor.predict`."""
        self.check(batch)
        heard, seen = self._heard_and_seen(batch)
        found = torch.empty(len(batch), len(self.heads[HEAD]), device=batch.rows.device)
        for audio, visual in ((True, True), (True, False), (False, True)):
            rows = ((heard == audio) & (seen == visual)).nonzero().flatten()
            if len(rows):
                found[rows] = self._scores(batch, rows, audio, visual)
        return {HEAD: found}

    def _scores(self, batch: AVBatch, rows: Tensor, audio: bool, visual: bool) -> Tensor:
        part = replace(
            batch,
            ids=[batch.ids[row] for row in rows.tolist()],
            rows=batch.rows[rows],
            waveform=batch.waveform[rows] if audio and batch.waveform is not None else None,
            num_samples=batch.num_samples[rows] if audio and batch.num_samples is not None else None,
            frames=batch.frames[rows] if visual and batch.frames is not None else None,
        )
        own = "_".join(name for name, there in (("audio", audio), ("visual", visual)) if there)
        scores = batch_scores(self.objective, part, missing=not (audio and visual))
        return scores.get(f"{own}_ensemble", scores[own])
