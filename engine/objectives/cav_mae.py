"""CAV-MAE (Gong et al. 2023): reconstruction of removed patches and contrast between sound and picture.

``loss = w_r · (MSE_audio + MSE_visual) + λ · InfoNCE``. A weight of 0 switches a term off together with its
computation: ``contrast_weight: 0`` is AV-MAE, ``reconstruction_weight: 0`` is CAV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from datasets.batch import AVBatch
from engine.evaluation.reconstructions import Patches, frame_sheet, spectrogram_sheet
from engine.objectives.base import ObjectiveConfig, PretrainingObjective, detached
from engine.objectives.registry import ObjectiveKind, register_objective
from engine.parallel.world import gather_rows, rank
from models import (
    AudioVisualMAE,
    CavMaeModelConfig,
    FbankConfig,
    MAEOutput,
    ModelConfig,
    Stream,
    Workload,
    augment_fbank,
    info_nce,
    reconstruction_loss,
    training_flops,
    uniform,
)
from models.cav_mae.workload import activation_bytes


@dataclass(frozen=True)
class CavMaeConfig(ObjectiveConfig):
    """Weights and settings of the two losses.

    Attributes:
        kind: ``cav_mae``.
        reconstruction_weight: Weight of the two reconstruction losses (published: 1).
        contrast_weight: λ (published: 0.01).
        temperature: τ of the contrastive loss (published: 0.05).
        bidirectional: Contrast in both directions and take the mean; the paper contrasts visual to audio only.
        negatives: ``global``: the micro-batch of all ranks, gathered with gradient. ``local``: this rank's own, as the
            published code has it. With gradient accumulation, negatives are those of one micro-batch in either case.
        augment: Noise and a full roll in time on the spectrogram, as published.
    """

    kind: str = "cav_mae"
    reconstruction_weight: float = 1.0
    contrast_weight: float = 0.01
    temperature: float = 0.05
    bidirectional: bool = False
    negatives: Literal["global", "local"] = "global"
    augment: bool = True

    def __post_init__(self) -> None:
        for name in ("reconstruction_weight", "contrast_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be 0 or more")
        if self.reconstruction_weight == self.contrast_weight == 0:
            raise ValueError(
                "objective.reconstruction_weight and objective.contrast_weight are both 0: nothing to learn"
            )
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature is {self.temperature}: it must be above 0")

    def check(self, model: ModelConfig) -> None:
        """See `ObjectiveConfig.check`."""
        mask = cast(CavMaeModelConfig, model).mask
        if self.reconstruction_weight > 0 and not (mask.audio_ratio > 0 and mask.visual_ratio > 0):
            raise ValueError(
                "model.mask.audio_ratio and model.mask.visual_ratio must be above 0 while "
                "objective.reconstruction_weight is: there would be nothing to reconstruct"
            )


class CavMae(PretrainingObjective[AudioVisualMAE]):
    """CAV-MAE's two losses on an `AudioVisualMAE`.

    Args:
        model: The masked autoencoder.
        fbank: The spectrogram's settings.
        config: The losses' settings.
    """

    def __init__(self, model: AudioVisualMAE, fbank: FbankConfig, config: CavMaeConfig) -> None:
        super().__init__(model, fbank, config)
        self.config = config

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B clips, each with one frame."""
        fbank, frames = self._single(batch)
        if self.config.augment:
            fbank = augment_fbank(fbank, batch.seeds)
        output = self.reconstruct(fbank, frames, batch.seeds)
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=fbank.device)
        if output.pred_audio is not None and output.pred_visual is not None:
            norm_pix = self.model.config.norm_pix_loss
            audio, visual = self.model.patchify_audio(fbank), self.model.patchify_visual(frames)
            losses["loss_mae_audio"] = reconstruction_loss(
                output.pred_audio, audio, output.mask_audio, norm_pix
            )
            losses["loss_mae_visual"] = reconstruction_loss(
                output.pred_visual, visual, output.mask_visual, norm_pix
            )
            total = total + self.config.reconstruction_weight * (
                losses["loss_mae_audio"] + losses["loss_mae_visual"]
            )
        if output.embed_audio is not None and output.embed_visual is not None:
            contrast = self._contrast(output.embed_audio, output.embed_visual)
            total = total + self.config.contrast_weight * contrast["loss_contrastive"]
            losses.update(contrast)
        return detached({"loss": total, **losses})

    def _single(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """(B, T, F) normalised fbank and (B, 3, H, W) normalised first frames."""
        fbank, frames = self.inputs(batch)
        return fbank, frames[:, 0]

    def reconstruct(self, fbank: Tensor, frames: Tensor, seeds: Tensor) -> MAEOutput:
        """The model's pass with the masks that belong to ``seeds``."""
        model = self.model
        return model(
            fbank,
            frames,
            uniform(seeds, Stream.MASK_AUDIO, (model.config.num_audio_tokens,)),
            uniform(seeds, Stream.MASK_VISUAL, (model.config.num_visual_tokens,)),
            reconstruct=self.config.reconstruction_weight > 0,
            contrast=self.config.contrast_weight > 0,
        )

    def _contrast(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Rows are this rank's clips, columns those of all ranks (or its own, with local negatives)."""
        local = self.config.negatives == "local"
        first = 0 if local else rank() * len(audio)
        audio_keys = audio if local else gather_rows(audio)
        loss, accuracy = info_nce(visual, audio_keys, first, self.config.temperature)
        if self.config.bidirectional:
            visual_keys = visual if local else gather_rows(visual)
            back, back_accuracy = info_nce(audio, visual_keys, first, self.config.temperature)
            loss, accuracy = (loss + back) / 2, (accuracy + back_accuracy) / 2
        chance = torch.full_like(accuracy, 1 / len(audio_keys))
        return {"loss_contrastive": loss, "contrastive_accuracy": accuracy, "contrastive_chance": chance}

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.pictures`: reconstructions, where they are learned."""
        if self.config.reconstruction_weight == 0:
            return {}
        fbank, frames = self._single(batch)
        output, model = self.reconstruct(fbank, frames, batch.seeds), self.model
        assert output.pred_audio is not None
        assert output.pred_visual is not None
        norm_pix = model.config.norm_pix_loss
        audio = Patches(model.patchify_audio(fbank), output.pred_audio, output.mask_audio, norm_pix)
        visual = Patches(model.patchify_visual(frames), output.pred_visual, output.mask_visual, norm_pix)
        return {
            "reconstruction/frames": frame_sheet(
                frames, visual, model.unpatchify_visual, self.visual_front_end.invert
            ),
            "reconstruction/spectrograms": spectrogram_sheet(fbank, audio, model.unpatchify_audio),
        }

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`."""
        model, config = self.model.config, self.config
        reconstruct, contrast = config.reconstruction_weight > 0, config.contrast_weight > 0
        kept = model.num_kept_audio + model.num_kept_visual
        return Workload(
            training_flops(model, reconstruct=reconstruct, contrast=contrast),
            activation_bytes(model, kept, reconstruct + contrast, bf16, decode=reconstruct),
        )


register_objective(ObjectiveKind("cav_mae", CavMaeConfig, CavMae, ("cav_mae",), "cav_mae_base"))
