"""The config of a fine-tuning run, and of what is measured at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.loading.sampling import SamplingConfig
from engine.config import DEFAULT_MODEL, RunConfig, with_types
from engine.evaluation.probes import ProbeConfig
from engine.init_settings import settings_of_init
from engine.objectives.base import ObjectiveConfig
from engine.objectives.classification import ClassificationConfig
from engine.objectives.fusion import FusionConfig, TowerRates
from engine.training.weight_average import AveragingConfig
from models.config import unknown_name
from models.fusion import MODALITIES, FusionModelConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on held-out clips at the end, or with ``eval_only``.

    Attributes:
        shards: The set; null is ``data.val``.
        batch_size: Clips per batch. Results do not depend on the number of ranks, but may on this size.
        all_frames: Average the probabilities over all stored frames; those of the middle frame are reported too.
        missing_modality: Also evaluate a model of both modalities on each modality alone.
        bootstrap: Resamples of the clips for confidence intervals; 0 for none.
        frozen_features: Retrieval, nearest neighbours and a linear probe on the encoder's features.
        pictures: Whether to draw the worst errors and retrieval.
        probe: Settings of the probes.
    """

    shards: str | None = None
    batch_size: int = 32
    all_frames: bool = True
    missing_modality: bool = True
    bootstrap: int = 1000
    frozen_features: bool = False
    pictures: bool = True
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"evaluation.batch_size is {self.batch_size}: it must be at least 1")
        if self.bootstrap < 0:
            raise ValueError(f"evaluation.bootstrap is {self.bootstrap}: it must be 0 or more")


@dataclass(frozen=True)
class LabelledConfig(RunConfig):
    """A run on labelled clips, whatever it trains on them.

    Attributes:
        eval_only: Train nothing: evaluate this run, or ``init`` if it has no checkpoint.
        sampling: How often each clip is sampled, and mixup.
        objective: What is trained; ``kind`` decides which further keys there are.
        averaging: Epochs whose weights are averaged.
        best: Something measured on ``data.val`` during training, such as ``val/top1`` or ``val/emotion/weighted_f1``:
            the weights with its highest value are kept and evaluated beside the last ones. Null keeps none.
        evaluation: What is measured at the end.
    """

    output_dir: str = "runs/finetune"
    eval_only: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ClassificationConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    best: str | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_only and self.evaluation_shards is None:
            raise ValueError("eval_only needs data.val or evaluation.shards: a set to evaluate on")
        if self.train.eval_interval and self.data.val is None:
            raise ValueError("train.eval_interval needs data.val: a set to evaluate on")
        if self.best is not None and not (self.data.val and self.train.evaluates):
            raise ValueError("best needs evaluations during training: set data.val and train.eval_interval")

    @classmethod
    def narrowed(cls, chosen: Mapping[str, str]) -> type[RunConfig]:
        """See `RunConfig.narrowed`: that of the kind chosen."""
        return _run_kind(chosen).narrowed(chosen)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `RunConfig.defaults`: those of the kind chosen."""
        return _run_kind(given).defaults(given)

    @property
    def trains(self) -> bool:
        """With ``eval_only`` the run's folder is only read: the run may be live."""
        return not self.eval_only

    @property
    def status_folder(self) -> Path:
        """A separate evaluation has its status beside its results: the run may be training meanwhile."""
        return Path(self.output_dir, "evaluation") if self.eval_only else Path(self.output_dir)

    @property
    def evaluation_shards(self) -> str | None:
        """The set that is evaluated at the end, if any."""
        return self.evaluation.shards or self.data.val


@dataclass(frozen=True)
class FinetuneConfig(LabelledConfig):
    """A fine-tuning run. It starts from the encoders of ``init``; ``model`` and ``fbank`` are theirs unless given.

    Attributes:
        init_head: Also take the head of ``init``, a fine-tuned run or checkpoint of the same classes.
        fit_head: Before the first step, fit the head to the features that the encoders have then, as a linear probe
            with the settings of ``evaluation.probe``; training goes on from there (LP-FT, arXiv 2202.10054). With few
            labels far better than a randomly initialised head. Rank 0 holds the features of all clips, four times over
            while it gathers and fits.
        objective: Modalities, loss, head, augmentation.
    """

    init_head: bool = False
    fit_head: bool = False
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_head and self.init is None:
            raise ValueError("init_head needs init: a fine-tuned run or checkpoint")
        if self.init_head and self.fit_head:
            raise ValueError("init_head and fit_head both initialise the head; give one")
        if len(self.data.train_sets) > 1:
            for name, wanted in (
                ("fit_head", self.fit_head),
                ("evaluation.frozen_features", self.evaluation.frozen_features),
            ):
                if wanted:
                    raise ValueError(f"{name} needs a single training set; data.train names several")

    @classmethod
    def narrowed(cls, chosen: Mapping[str, str]) -> type[RunConfig]:
        """See `RunConfig.narrowed`."""
        return with_types(cls, chosen.get("model.name", DEFAULT_MODEL))

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `RunConfig.defaults`: the model and the spectrograms of ``init``."""
        return settings_of_init(given, cls.output_dir)


@dataclass(frozen=True)
class FusionRunConfig(LabelledConfig):
    """A run that fuses sound, frames and text; ``init`` may be a run of the same model, whose weights begin it.

    Attributes:
        output_dir: The run's folder.
        model: The towers, and how they are joined.
        objective: The heads, and how the towers are trained.
    """

    output_dir: str = "runs/fusion"
    model: FusionModelConfig = field(default_factory=FusionModelConfig)
    objective: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.mixup:
            raise ValueError(
                "sampling.mixup is above 0: there is no mixing two texts; set it to 0 for fusion"
            )
        if self.evaluation.frozen_features:
            raise ValueError("evaluation.frozen_features is for encoders alone; leave it out for fusion")
        if self.train.parallel.compile and "text" in self.model.modalities:
            raise ValueError(
                "train.parallel.compile is true: the longest text of a batch decides its length, and each would be "
                "compiled anew; leave it off for models that take text"
            )
        for name in MODALITIES:
            rates = self.objective.rates(name)
            if name not in self.model.modalities and rates != TowerRates():
                raise ValueError(f"objective.{name} has no effect: {name} is not among model.modalities")
            if self.model.tower(name).frozen and rates != TowerRates():
                raise ValueError(f"objective.{name} has no effect: model.{name}.frozen is true")
            if rates.from_epoch > 0 and self.model.tower(name).source is None:
                raise ValueError(
                    f"objective.{name}.from_epoch is above 0 and model.{name}.source is null: a random tower would "
                    "stay random until then"
                )

    @classmethod
    def narrowed(cls, chosen: Mapping[str, str]) -> type[RunConfig]:
        """See `RunConfig.narrowed`."""
        return cls

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """See `RunConfig.defaults`: none, since ``init`` begins the same model."""
        return {}


#: The config of each kind of run.
RUNS: dict[str, type[LabelledConfig]] = {
    ClassificationConfig.kind: FinetuneConfig,
    FusionConfig.kind: FusionRunConfig,
}


def _run_kind(chosen: Mapping[str, Any]) -> type[LabelledConfig]:
    kind = str(chosen.get("objective.kind", ClassificationConfig.kind))
    if kind not in RUNS:
        raise unknown_name("objective.kind", kind, RUNS)
    return RUNS[kind]
