"""What CAV-MAE, CAV-MAE Sync and TG-DP share: reconstruction of removed patches, and contrast of two vectors a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor

from engine.evaluation.reconstructions import Patches, frame_sheet, spectrogram_sheet
from engine.objectives.base import ObjectiveConfig
from engine.parallel.world import gather_rows, rank
from models import CavMaeModelConfig, ModelConfig, VisualFrontEnd, info_nce, reconstruction_loss
from models.cav_mae.mae import JointAutoencoder
from models.layers.masking import num_kept


@dataclass(frozen=True)
class MaskedContrastConfig(ObjectiveConfig):
    """Weights and settings of the two losses.

    Attributes:
        kind: Which objective.
        reconstruction_weight: Weight of the two reconstruction losses (published: 1).
        contrast_weight: λ.
        temperature: τ of the contrastive loss (published: 0.05).
        bidirectional: Contrast in both directions and take the mean; else visual to audio only.
        negatives: ``global``: the micro-batch of all ranks, gathered with gradient. ``local``: this rank's own, as the
            published code has it. With gradient accumulation, negatives are those of one micro-batch in either case.
        contrast_mask_ratio: Share of the tokens removed for the contrast, which then has a pass and masks of its own;
            null contrasts what the pass that reconstructs has kept.
    """

    kind: str = ""
    reconstruction_weight: float = 1.0
    contrast_weight: float = 0.01
    temperature: float = 0.05
    bidirectional: bool = False
    negatives: Literal["global", "local"] = "global"
    contrast_mask_ratio: float | None = None

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
        ratio = self.contrast_mask_ratio
        if ratio is not None and not 0 <= ratio < 1:
            raise ValueError(
                f"objective.contrast_mask_ratio is {ratio}: it is the share of tokens removed for the contrast and "
                f"must lie in [0, 1)"
            )

    def check(self, model: ModelConfig) -> None:
        """See `ObjectiveConfig.check`."""
        sizes = cast(CavMaeModelConfig, model)
        if self.reconstruction_weight > 0 and not (
            sizes.mask.audio_ratio > 0 and sizes.mask.visual_ratio > 0
        ):
            raise ValueError(
                "model.mask.audio_ratio and model.mask.visual_ratio must be above 0 while "
                "objective.reconstruction_weight is: there would be nothing to reconstruct"
            )
        for name, tokens in (("audio", sizes.num_audio_tokens), ("visual", sizes.num_visual_tokens)):
            if self.contrast_mask_ratio is not None and num_kept(tokens, self.contrast_mask_ratio) < 1:
                raise ValueError(
                    f"objective.contrast_mask_ratio {self.contrast_mask_ratio} leaves none of the {tokens} {name} "
                    f"tokens to contrast; lower it or enlarge the input"
                )

    @property
    def reconstructs(self) -> bool:
        """Whether anything is reconstructed."""
        return self.reconstruction_weight > 0

    @property
    def contrasts(self) -> bool:
        """Whether anything is contrasted."""
        return self.contrast_weight > 0

    @property
    def two_passes(self) -> bool:
        """Whether the contrast has a pass of its own."""
        return self.contrasts and self.contrast_mask_ratio is not None


def cross_modal_contrast(config: MaskedContrastConfig, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
    """InfoNCE: rows are this rank's clips, columns those of all ranks (or its own, with local negatives).

    Args:
        config: Temperature, directions, negatives.
        audio: (B, D) of this rank's clips.
        visual: (B, D) likewise.

    Returns:
        The loss, its accuracy and that of chance.
    """
    local = config.negatives == "local"
    first = 0 if local else rank() * len(audio)
    audio_keys = audio if local else gather_rows(audio)
    loss, accuracy = info_nce(visual, audio_keys, first, config.temperature)
    if config.bidirectional:
        visual_keys = visual if local else gather_rows(visual)
        back, back_accuracy = info_nce(audio, visual_keys, first, config.temperature)
        loss, accuracy = (loss + back) / 2, (accuracy + back_accuracy) / 2
    chance = accuracy.new_full((), 1 / len(audio_keys))
    return {"loss_contrastive": loss, "contrastive_accuracy": accuracy, "contrastive_chance": chance}


@dataclass(frozen=True)
class Reconstruction:
    """What a pass made of removed patches.

    Attributes:
        fbank: (B, T, F) what the model was shown.
        frames: (B, 3, H, W) likewise.
        pred_audio: (B, La, P*P).
        pred_visual: (B, Lv, P*P*3).
        mask_audio: (B, La), 1 = removed.
        mask_visual: (B, Lv).
    """

    fbank: Tensor
    frames: Tensor
    pred_audio: Tensor
    pred_visual: Tensor
    mask_audio: Tensor
    mask_visual: Tensor

    def losses(self, model: JointAutoencoder[Any, Any]) -> dict[str, Tensor]:
        """Of both modalities."""
        norm_pix = model.config.norm_pix_loss
        audio, visual = model.patchify_audio(self.fbank), model.patchify_visual(self.frames)
        return {
            "loss_mae_audio": reconstruction_loss(self.pred_audio, audio, self.mask_audio, norm_pix),
            "loss_mae_visual": reconstruction_loss(self.pred_visual, visual, self.mask_visual, norm_pix),
        }

    def pictures(self, model: JointAutoencoder[Any, Any], front_end: VisualFrontEnd) -> dict[str, Tensor]:
        """(3, H, W) uint8 sheets of both modalities."""
        norm_pix = model.config.norm_pix_loss
        audio = Patches(model.patchify_audio(self.fbank), self.pred_audio, self.mask_audio, norm_pix)
        visual = Patches(model.patchify_visual(self.frames), self.pred_visual, self.mask_visual, norm_pix)
        frames = frame_sheet(self.frames, visual, model.unpatchify_visual, front_end.invert)
        spectrograms = spectrogram_sheet(self.fbank, audio, model.unpatchify_audio)
        return {"reconstruction/frames": frames, "reconstruction/spectrograms": spectrograms}
