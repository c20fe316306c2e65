"""CAV-MAE (Gong et al. 2023): reconstruction of removed patches and contrast between sound and picture.

``loss = w_r · (MSE_audio + MSE_visual) + λ · InfoNCE``. A weight of 0 switches a term off together with its
computation: ``contrast_weight: 0`` is AV-MAE, ``reconstruction_weight: 0`` is CAV.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.batch import AVBatch
from engine.objectives.base import PretrainingObjective, detached
from engine.objectives.masked_contrast import MaskedContrastConfig, Reconstruction, cross_modal_contrast
from engine.objectives.registry import ObjectiveKind, register_objective
from models import (
    AudioVisualMAE,
    FbankConfig,
    MAEOutput,
    Stream,
    Workload,
    augment_fbank,
    pass_stream,
    training_flops,
    uniforms,
)
from models.cav_mae.workload import activation_bytes, encoder_flops
from models.layers.masking import num_kept


@dataclass(frozen=True)
class CavMaeConfig(MaskedContrastConfig):
    """Weights and settings of the two losses.

    Attributes:
        kind: ``cav_mae``.
        contrast_weight: λ (published: 0.01).
        augment: Noise and a full roll in time on the spectrogram, as published.
    """

    kind: str = "cav_mae"
    contrast_weight: float = 0.01
    augment: bool = True


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
        losses: dict[str, Tensor] = {}
        total, config, contrasted = torch.zeros((), device=fbank.device), self.config, None
        if config.reconstructs or not config.two_passes:
            contrasted = self.first_pass(fbank, frames, batch.seeds)
            if config.reconstructs:
                losses |= _reconstruction(fbank, frames, contrasted).losses(self.model)
                total = total + config.reconstruction_weight * (
                    losses["loss_mae_audio"] + losses["loss_mae_visual"]
                )
        if config.two_passes:
            contrasted = self.contrast_pass(fbank, frames, batch.seeds)
        if config.contrasts:
            assert contrasted is not None
            assert contrasted.embed_audio is not None
            assert contrasted.embed_visual is not None
            found = cross_modal_contrast(config, contrasted.embed_audio, contrasted.embed_visual)
            total = total + config.contrast_weight * found["loss_contrastive"]
            losses |= found
        return detached({"loss": total, **losses})

    def _single(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """(B, T, F) normalised fbank and (B, 3, H, W) normalised first frames."""
        fbank, frames = self.inputs(batch)
        return fbank, frames[:, 0]

    def first_pass(self, fbank: Tensor, frames: Tensor, seeds: Tensor) -> MAEOutput:
        """The pass that reconstructs, with the masks that belong to ``seeds``; it contrasts too, unless apart."""
        return self.model(
            fbank,
            frames,
            *self._noise(seeds, 0),
            reconstruct=self.config.reconstructs,
            contrast=self.config.contrasts and not self.config.two_passes,
        )

    def contrast_pass(self, fbank: Tensor, frames: Tensor, seeds: Tensor) -> MAEOutput:
        """A pass for the contrast alone, with masks of its own."""
        ratio = self.config.contrast_mask_ratio
        return self.model(fbank, frames, *self._noise(seeds, 1), reconstruct=False, ratio=ratio)

    def _noise(self, seeds: Tensor, number: int) -> list[Tensor]:
        """Of the masks of the ``number``-th pass, audio and visual."""
        config = self.model.config
        audio = (pass_stream(Stream.MASK_AUDIO, number), (config.num_audio_tokens,))
        visual = (pass_stream(Stream.MASK_VISUAL, number), (config.num_visual_tokens,))
        return uniforms(seeds, [audio, visual])

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.pictures`: reconstructions, where they are learned."""
        if not self.config.reconstructs:
            return {}
        fbank, frames = self._single(batch)
        output = self.first_pass(fbank, frames, batch.seeds)
        return _reconstruction(fbank, frames, output).pictures(self.model, self.visual_front_end)

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`."""
        model, config = self.model.config, self.config
        flops, activations = 0.0, 0
        if config.reconstructs or not config.two_passes:
            contrast = config.contrasts and not config.two_passes
            kept = model.num_kept_audio + model.num_kept_visual
            flops += training_flops(model, reconstruct=config.reconstructs, contrast=contrast)
            activations += activation_bytes(
                model, kept, config.reconstructs + contrast, bf16, decode=config.reconstructs
            )
        if config.two_passes:
            ratio = config.contrast_mask_ratio
            assert ratio is not None
            tokens = [num_kept(count, ratio) for count in (model.num_audio_tokens, model.num_visual_tokens)]
            flops += 3.0 * encoder_flops(model, *tokens, joint_passes=1)
            activations += activation_bytes(model, sum(tokens), 1, bf16, decode=False)
        return Workload(flops, activations)


def _reconstruction(fbank: Tensor, frames: Tensor, output: MAEOutput) -> Reconstruction:
    assert output.pred_audio is not None
    assert output.pred_visual is not None
    return Reconstruction(
        fbank, frames, output.pred_audio, output.pred_visual, output.mask_audio, output.mask_visual
    )


register_objective(ObjectiveKind("cav_mae", CavMaeConfig, CavMae, ("cav_mae",), "cav_mae_base"))
