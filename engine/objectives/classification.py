"""Classification with the kept encoders: one head, whatever modalities are present, BCE or cross-entropy.

The published recipe of CAV-MAE's fine-tuning: mixup of waveforms and frames, SpecAugment, noise and roll on
the spectrogram, smoothed labels, and a head that learns at a multiple of the encoder's rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.sampling import MixedBatch
from engine.objectives.base import LrGroup, Objective, ObjectiveConfig, detached
from models import (
    AudioFrontEnd,
    AudioVisualClassifier,
    FbankConfig,
    VisualFrontEnd,
    Workload,
    augment_fbank,
    mask_bands,
    mix_waveforms,
)


class Modalities(StrEnum):
    """What a classifier is trained on."""

    audio = "audio"
    visual = "visual"
    audio_visual = "audio_visual"


class LossName(StrEnum):
    """``bce``: each class a yes or no, for clips with several labels. ``cross_entropy``: one of them."""

    bce = "bce"
    cross_entropy = "cross_entropy"


@dataclass(frozen=True)
class ClassificationConfig(ObjectiveConfig):
    """What is trained, on what loss, with what augmentation.

    Attributes:
        kind: ``classification``.
        modalities: What the model sees in training.
        loss: BCE for sets with several labels a clip, cross-entropy for one label.
        pool_separate: With both modalities, pool each modality's own stream together with the joint one.
        freeze_encoder: Train only the head (a linear probe).
        head_lr_ratio: The head's learning rate over the encoder's, in every step (published: 10 to 100).
        layer_decay: Ratio of each block's learning rate to the next block's; 1 for equal rates.
        label_smoothing: Share of a label spread over all classes (published: 0.1).
        freq_mask: Mel bins that SpecAugment masks at most (published: 48 of 128).
        time_mask: Frames that it masks at most (published: 192 of 1024).
        noise_and_roll: Noise and a roll in time on the spectrogram, as in pretraining.
    """

    kind: str = "classification"
    modalities: Modalities = Modalities.audio_visual
    loss: LossName = LossName.bce
    pool_separate: bool = False
    freeze_encoder: bool = False
    head_lr_ratio: float = 10.0
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    freq_mask: int = 0
    time_mask: int = 0
    noise_and_roll: bool = False

    def __post_init__(self) -> None:
        if self.kind != "classification":
            raise ValueError(f"objective.kind is {self.kind!r}: these settings are those of classification")
        if self.head_lr_ratio <= 0:
            raise ValueError(f"objective.head_lr_ratio is {self.head_lr_ratio}: it must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"objective.layer_decay is {self.layer_decay}: it must lie in (0, 1]")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"objective.label_smoothing is {self.label_smoothing}: it must lie in [0, 1)")
        for name in ("freq_mask", "time_mask"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be 0 or more")
        if self.pool_separate and self.modalities is not Modalities.audio_visual:
            raise ValueError("objective.pool_separate needs objective.modalities audio_visual")

    @property
    def audio(self) -> bool:
        """Whether sound is used."""
        return self.modalities is not Modalities.visual

    @property
    def visual(self) -> bool:
        """Whether frames are used."""
        return self.modalities is not Modalities.audio


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``mean over B and C of -(t log σ(x) + (1 - t) log(1 - σ(x)))``; both (B, C), targets in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``mean over B of -Σ_c t_c log softmax(x)_c``; both (B, C), targets may be a mix of classes."""
    return F.cross_entropy(logits.float(), targets)


LOSSES = {LossName.bce: bce_loss, LossName.cross_entropy: cross_entropy_loss}


def smooth_targets(labels: Tensor, smoothing: float) -> Tensor:
    """``(1 - s) t + s / C``, as the published data loader smooths: (B, C) -> (B, C)."""
    return labels * (1 - smoothing) + smoothing / labels.shape[1]


class Classification(Objective[AudioVisualClassifier]):
    """A classifier and its loss.

    Args:
        model: The encoders and the head.
        fbank: The spectrogram's settings.
        config: Modalities, loss and augmentation.
    """

    def __init__(
        self, model: AudioVisualClassifier, fbank: FbankConfig, config: ClassificationConfig
    ) -> None:
        super().__init__()
        self.kind = config.kind
        self.model = model
        self.config = config
        self.audio_front_end = AudioFrontEnd(fbank)
        self.visual_front_end = VisualFrontEnd()
        if config.freeze_encoder:
            model.encoder.requires_grad_(False)
        self._freeze_unused()

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B labelled clips, each with one frame, mixed if it is a `MixedBatch`."""
        assert batch.labels is not None
        fbank, frames = self.inputs(batch)
        targets = batch.labels
        if isinstance(batch, MixedBatch):
            assert batch.weights is not None
            assert batch.partners is not None
            assert batch.partners.labels is not None
            # Published: where both clips have a class, its target is the sum.
            targets = targets * batch.weights[:, None] + batch.partners.labels * (1 - batch.weights[:, None])
        if fbank is not None:
            fbank = self._augment(fbank, batch.seeds)
        logits = self.logits(fbank, frames)
        loss = LOSSES[self.config.loss](logits, smooth_targets(targets, self.config.label_smoothing))
        hit = targets.gather(1, logits.argmax(dim=1, keepdim=True)) > 0
        return detached({"loss": loss, "accuracy": hit.float().mean()})

    def inputs(self, batch: AVBatch) -> tuple[Tensor | None, Tensor | None]:
        """(B, T, F) normalised fbank and (B, N, 3, H, W) normalised frames, the first N; None of what the batch lacks.

        Args:
            batch: The clips; those of a `MixedBatch` are mixed.
        """
        return self.spectrograms(batch), self.frames(batch)

    @torch.no_grad()
    def spectrograms(self, batch: AVBatch) -> Tensor | None:
        """(B, T, F) normalised fbank, of a `MixedBatch` that of the mixed sound."""
        if batch.waveform is None:
            return None
        assert batch.num_samples is not None
        waveform = _mixed_waveforms(batch) if isinstance(batch, MixedBatch) else batch.waveform
        return self.audio_front_end(waveform, batch.num_samples)

    @torch.no_grad()
    def frames(self, batch: AVBatch, first: int = 0) -> Tensor | None:
        """(B, N, 3, H, W) normalised frames, as many as the encoder takes at a time, from ``first`` on."""
        if batch.frames is None:
            return None
        views = slice(first, first + self.model.config.num_frames)
        frames = self.visual_front_end(batch.frames[:, views])
        if not isinstance(batch, MixedBatch):
            return frames
        assert batch.partners is not None
        assert batch.partners.frames is not None
        assert batch.weights is not None
        others = self.visual_front_end(batch.partners.frames[:, views])
        weights = batch.weights[:, None, None, None, None]
        return weights * frames + (1 - weights) * others

    def logits(self, fbank: Tensor | None, frames: Tensor | None) -> Tensor:
        """(B, classes) from the modalities given: those trained on, or one of two."""
        return self.model(fbank, frames, trained_on_both=self._both)

    def head_features(self, batch: AVBatch) -> Tensor:
        """(B, D) float32, what the head sees of a batch."""
        return self.model.features(*self.inputs(batch), trained_on_both=self._both)

    @property
    def _both(self) -> bool:
        return self.config.modalities is Modalities.audio_visual

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, classes) float32 scores in 0 … 1: each class for itself (BCE), or summing to 1."""
        bce = self.config.loss is LossName.bce
        return logits.float().sigmoid() if bce else logits.float().softmax(dim=1)

    def _augment(self, fbank: Tensor, seeds: Tensor) -> Tensor:
        config, front_end = self.config, self.audio_front_end.config
        # Published: masked with 0 before the normalisation.
        silence = -front_end.mean / front_end.std
        fbank = mask_bands(fbank, seeds, config.freq_mask, config.time_mask, silence)
        return augment_fbank(fbank, seeds) if config.noise_and_roll else fbank

    def _freeze_unused(self) -> None:
        """Freezes what gets no gradient: the other modality's encoder, norms of streams not pooled."""
        size = self.model.config
        fbank = torch.zeros(1, size.audio_length, size.num_mel_bins) if self.config.audio else None
        picture = (1, size.num_frames, 3, size.image_size, size.image_size)
        frames = torch.zeros(picture) if self.config.visual else None
        self.logits(fbank, frames).sum().backward()
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def lr_groups(self) -> dict[str, LrGroup]:
        """The head at ``head_lr_ratio``, blocks at ``layer_decay`` to the power of their distance from it."""
        groups, encoder = {}, self.model.encoder
        last = encoder.num_layers + 1
        for name, _ in self.model.named_parameters():
            if not name.startswith("encoder."):
                groups[name] = LrGroup("head", self.config.head_lr_ratio)
            elif self.config.layer_decay < 1:
                depth = encoder.depth_of(name.removeprefix("encoder."))
                groups[name] = LrGroup(f"layer{depth:02d}", self.config.layer_decay ** (last - depth))
        return groups

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`; a frozen encoder has no backward pass."""
        config, encoder = self.config, self.model.encoder
        forward = encoder.feature_flops(config.audio, config.visual, config.pool_separate)
        if config.freeze_encoder:
            return Workload(forward, 0)
        activations = encoder.feature_activations(config.audio, config.visual, bf16, config.pool_separate)
        return Workload(3 * forward, activations)


def _mixed_waveforms(batch: MixedBatch) -> Tensor:
    assert batch.waveform is not None
    assert batch.num_samples is not None
    assert batch.weights is not None
    other = batch.partners
    assert other is not None
    assert other.waveform is not None
    assert other.num_samples is not None
    return mix_waveforms(batch.waveform, batch.num_samples, other.waveform, other.num_samples, batch.weights)
