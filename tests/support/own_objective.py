"""An objective, a model family and an EMA teacher of somebody's own, outside Earsight's packages: docs/extending.md."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import AVBatch
from engine.objectives.base import ObjectiveConfig, PretrainingObjective, detached
from engine.objectives.registry import ObjectiveKind, register_objective
from engine.parallel.world import gather_rows, rank
from models import (
    Embeddings,
    Encoder,
    Family,
    FbankConfig,
    ModelConfig,
    Workload,
    info_nce,
    register_family,
)


@dataclass(frozen=True)
class PooledConfig(ModelConfig):
    """Means over time and over space, each through one linear layer."""

    name: str = "pooled_tiny"
    width: int = 16

    @property
    def encoder_width(self) -> int:
        return self.width

    @property
    def encoder_heads(self) -> int:
        return 1

    @property
    def audio_patch_length(self) -> int:
        return 1


class PooledEncoder(Encoder[PooledConfig]):
    def __init__(self, config: PooledConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = nn.Linear(config.num_mel_bins, config.width)
        self.visual = nn.Linear(3 * config.image_size, config.width)

    @property
    def feature_dim(self) -> int:
        return self.config.width

    @property
    def num_layers(self) -> int:
        return 1

    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        audio = None if fbank is None else self.audio(fbank[:, :audio_columns].mean(1)).float()
        visual = None if frames is None else self.visual(frames.mean((1, 3)).flatten(1)).float()
        return Embeddings(audio, visual)

    def features(self, fbank: Tensor | None, frames: Tensor | None, **_: bool) -> Tensor:
        found = self.embed(fbank, frames)
        return torch.stack([x for x in (found.audio, found.visual) if x is not None]).mean(0)

    def depth_of(self, name: str) -> int:
        return 1

    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        inputs = self.config.num_mel_bins * audio + 3 * self.config.image_size * visual
        return 2.0 * inputs * self.config.width

    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        return 4 * (self.config.num_mel_bins * audio + 3 * self.config.image_size * visual)

    def no_weight_decay(self) -> set[str]:
        return set()


class PooledModel(nn.Module):
    def __init__(self, config: PooledConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PooledEncoder(config)


@dataclass(frozen=True)
class TeachingConfig(ObjectiveConfig):
    """Contrast, and a teacher's vectors to keep to.

    Attributes:
        kind: ``teaching``.
        momentum: Of the teacher.
    """

    kind: str = "teaching"
    momentum: float = 0.9


class Teaching(PretrainingObjective[PooledModel]):
    def __init__(self, model: PooledModel, fbank: FbankConfig, config: TeachingConfig) -> None:
        super().__init__(model, fbank, config)
        self.config = config
        self.teacher = deepcopy(model.encoder).requires_grad_(False)

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        fbank, frames = self.inputs(batch)
        found, taught = self.model.encoder.embed(fbank, frames), self.teacher.embed(fbank, frames)
        assert found.audio is not None
        assert found.visual is not None
        assert taught.audio is not None
        first = rank() * len(found.audio)
        contrast, accuracy = info_nce(found.visual, gather_rows(found.audio), first, 0.1)
        distillation = F.mse_loss(found.audio, taught.audio)
        values = {"loss": contrast + distillation, "loss_contrastive": contrast}
        return detached(values | {"loss_distillation": distillation, "contrastive_accuracy": accuracy})

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        pairs = zip(self.teacher.parameters(), self.model.encoder.parameters(), strict=True)
        for ours, theirs in pairs:
            ours.lerp_(theirs, 1 - self.config.momentum)

    def workload(self, bf16: bool) -> Workload:
        forward = self.model.encoder.feature_flops(True, True)
        return Workload(4 * forward, self.model.encoder.feature_activations(True, True, bf16))

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        assert batch.frames is not None
        return {"own/first_frame": batch.frames[0, 0].cpu()}

    def no_weight_decay(self) -> set[str]:
        return set()


def register(**_: Any) -> None:
    """Makes both known; a second time is an error, as of everything that is registered."""
    family = Family("pooled", PooledConfig, {"pooled_tiny": "for a test"}, PooledModel, PooledEncoder)
    register_family(family)
    register_objective(ObjectiveKind("teaching", TeachingConfig, Teaching, ("pooled",), "pooled_tiny"))
