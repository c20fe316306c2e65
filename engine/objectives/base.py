"""What the trainer and the programs know of an objective: a module that joins a model and its losses.

A new objective is one file and one config: a frozen dataclass of settings, and a module whose ``forward`` takes a
batch and returns named values. It registers itself (`engine.objectives.registry`); nothing else names it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from engine.evaluation.features import Features
from engine.evaluation.retrieval import cross_modal_retrieval
from engine.parallel.world import World
from models import AudioFrontEnd, FbankConfig, ModelConfig, VisualFrontEnd, Workload

Model = TypeVar("Model", bound=nn.Module)


class LrGroup(NamedTuple):
    """Parameters that learn at a rate of their own.

    Attributes:
        name: For the log.
        scale: Their rate over the schedule's, at every step.
        from_epoch: Before this epoch (may be a fraction) their rate is 0; then their schedule begins.
    """

    name: str
    scale: float
    from_epoch: float = 0.0


def first_step(epoch: float, steps_per_epoch: float) -> int:
    """The first step (0-based) of which no part comes before an epoch (which may be a fraction)."""
    return math.ceil(epoch * steps_per_epoch)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What every objective's settings begin with.

    Attributes:
        kind: Which objective.
    """

    kind: str = ""

    def check(self, model: ModelConfig) -> None:
        """Makes sure that a model can be trained so.

        Raises:
            ValueError: It can't; the keys to change are named.
        """


class Objective(nn.Module, ABC, Generic[Model]):
    """A model and its losses.

    Beside ``model`` an objective may hold modules of its own that are not trained, such as a teacher: they are part of
    every checkpoint, but neither of the optimizer nor of the plain weights.

    Attributes:
        kind: The objective's name, which checkpoints bear.
        model: What is trained, and saved as plain weights.
    """

    kind: str
    model: Model

    @abstractmethod
    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """The losses of a batch on the model's device.

        Returns:
            () float32 values by name, always the same names. ``loss`` carries the gradient; nothing else does.
        """

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Names of parameters, within ``model``, without weight decay (beside norms and biases)."""

    def lr_groups(self) -> dict[str, LrGroup]:
        """By name within ``model``, the parameters whose rate is not the schedule's."""
        return {}

    @abstractmethod
    def workload(self, bf16: bool) -> Workload:
        """What a training step costs for one clip.

        Args:
            bf16: Whether autocast computes in 16 bits.
        """

    def keep_in(self, run: Path, resumed: bool, world: World) -> None:
        """Reads or writes what the objective keeps once in a run's folder, beside the checkpoints; before training.

        Args:
            run: The run's folder.
            resumed: Whether it has a checkpoint.
            world: The processes; every rank calls it, and the main one looks and writes.
        """

    def before_step(self, step: int, steps_per_epoch: float) -> None:
        """Sets what differs between steps, such as what is frozen; a function of the step.

        Args:
            step: The step about to be taken (0-based).
            steps_per_epoch: Steps in an epoch; may be a fraction.
        """

    def after_step(self, step: int, total_steps: int) -> None:
        """Moves what moves between steps, such as a teacher; a function of the step and of the weights.

        Args:
            step: Optimizer steps taken, this one included.
            total_steps: Of the whole run.
        """


class PretrainingObjective(Objective[Model]):
    """An objective that learns from clips without labels, and what is measured and shown of it on held-out clips.

    ``model.encoder`` is an `models.encoders.Encoder`, unless `embed` and `measure` are overridden.

    Args:
        model: The pretraining model; it has a ``config``.
        fbank: The spectrogram's settings.
        config: Its own; subclasses narrow the type.
    """

    def __init__(self, model: Model, fbank: FbankConfig, config: ObjectiveConfig) -> None:
        super().__init__()
        self.kind = config.kind
        self.model = model
        self.audio_front_end = AudioFrontEnd(fbank)
        self.visual_front_end = VisualFrontEnd()

    def needs(self) -> ClipNeeds:
        """What is read of a clip: sound and one frame, at random in training, the middle one in evaluation."""
        config = self.model.config
        assert isinstance(config, ModelConfig)
        return ClipNeeds(image_size=config.image_size, num_samples=self.audio_front_end.config.num_samples)

    @torch.no_grad()
    def inputs(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """(B, T, F) normalised fbank and (B, N, 3, H, W) normalised frames."""
        assert batch.waveform is not None
        assert batch.num_samples is not None
        assert batch.frames is not None
        return self.audio_front_end(batch.waveform, batch.num_samples), self.visual_front_end(batch.frames)

    def embed(self, batch: AVBatch) -> dict[str, Tensor]:
        """The vectors that held-out retrieval and probes measure: (B, D) or (B, N, D) float32 by name.

        ``audio`` and ``visual`` of each modality alone, ``audio_visual`` of both where the family joins them.
        """
        found = self.model.encoder.embed(*self.inputs(batch))  # type: ignore[operator]  # an Encoder
        streams = {"audio": found.audio, "visual": found.visual, "audio_visual": found.joint}
        return {name: value for name, value in streams.items() if value is not None}

    def measure(self, features: Features) -> dict[str, float]:
        """Retrieval on the vectors of all held-out clips."""
        return cross_modal_retrieval(features.streams["audio"], features.streams["visual"])

    def probed(self, features: Features) -> dict[str, Tensor]:
        """(N, D) vectors by name that linear probes are fitted to."""
        return {
            name: rows if rows.ndim == 2 else rearrange(rows, "n ... d -> n (...) d").mean(1)
            for name, rows in features.streams.items()
        }

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """(3, H, W) uint8 pictures by name for people to look at; none by default."""
        return {}


def detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """``values`` with the gradient on ``loss`` alone."""
    return {name: value if name == "loss" else value.detach() for name, value in values.items()}
