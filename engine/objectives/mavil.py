"""MAViL's first stage (Huang et al. 2023): reconstruction, contrast between modalities, contrast between views.

``loss = w_r · (MSE_audio + MSE_visual) + α · L_inter + β · L_intra``, on two independently masked views of each clip:
the first goes through towers, fusion and decoders, the second through the towers alone. A weight of 0 switches a term
off together with its computation.

Known of the paper (its abstract and passages quoted elsewhere): the three terms, both decoders, 80 % masks. Recalled
and not verified: two views, the weights and temperatures. Defaults of ours: ``e`` is the mean of the towers' tokens
without the CLS token and without a projection head; targets normalised patch by patch, as in AudioMAE.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from datasets.loading.frames import EvenFrames
from engine.evaluation.reconstructions import Patches, film_sheet, spectrogram_sheet
from engine.objectives.base import ObjectiveConfig, PretrainingObjective, detached
from engine.objectives.registry import ObjectiveKind, register_objective
from engine.parallel.world import gather_rows, rank
from models import FbankConfig, ModelConfig, Stream, Workload, info_nce, reconstruction_loss, uniform
from models.augment import roll_time
from models.mavil.config import MavilModelConfig
from models.mavil.encoder import mean_of_patches
from models.mavil.mae import MavilMAE, MavilView
from models.mavil.workload import decoder_bytes, decoder_flops, encoder_bytes, fusion_flops, tower_flops
from models.sample_random import pass_stream


@dataclass(frozen=True)
class MavilConfig(ObjectiveConfig):
    """Weights and settings of the losses.

    Attributes:
        kind: ``mavil``.
        reconstruction_weight: Weight of the two reconstruction losses (published: 1).
        inter_weight: α, of the contrast between sound and film (0.1, recalled of the paper).
        intra_weight: β, of the contrast between two views of one modality (0.01, recalled of the paper).
        inter_temperature: τ of the contrast between modalities (0.1, recalled).
        intra_temperature: τ of the contrast between views (1.0, recalled).
        negatives: ``global``: the micro-batch of all ranks, gathered with gradient. ``local``: this rank's own.
        roll: A full random roll of the spectrogram in time, as in AudioMAE's script.
    """

    kind: str = "mavil"
    reconstruction_weight: float = 1.0
    inter_weight: float = 0.1
    intra_weight: float = 0.01
    inter_temperature: float = 0.1
    intra_temperature: float = 1.0
    negatives: Literal["global", "local"] = "global"
    roll: bool = True

    def __post_init__(self) -> None:
        weights = self.weights()
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"objective.{name} is {value}: it must be 0 or more")
        if not any(weights.values()):
            raise ValueError(f"objective.{', objective.'.join(weights)} are all 0: nothing to learn")
        for name in ("inter_temperature", "intra_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be above 0")

    def weights(self) -> dict[str, float]:
        """The weights of all terms, by their keys."""
        names = ("reconstruction_weight", "inter_weight", "intra_weight")
        return {name: getattr(self, name) for name in names}

    @property
    def decodes(self) -> bool:
        """Whether anything is decoded."""
        return self.reconstruction_weight > 0

    def check(self, model: ModelConfig) -> None:
        """See `ObjectiveConfig.check`."""
        assert isinstance(model, MavilModelConfig)
        if self.decodes and not (model.mask.audio_ratio > 0 and model.mask.visual_ratio > 0):
            raise ValueError(
                "model.mask.audio_ratio and model.mask.visual_ratio must be above 0 while anything is decoded: there "
                "would be nothing to predict"
            )


class Mavil(PretrainingObjective[MavilMAE]):
    """MAViL's three losses on a `MavilMAE`.

    Args:
        model: The masked autoencoder.
        fbank: The spectrogram's settings.
        config: The losses' settings.
    """

    def __init__(self, model: MavilMAE, fbank: FbankConfig, config: MavilConfig) -> None:
        super().__init__(model, fbank, config)
        self.config = config
        self._freeze_unused()

    def needs(self) -> ClipNeeds:
        """See `PretrainingObjective.needs`: as many frames as the model takes, evenly spaced."""
        found = super().needs()
        count = self.model.config.num_frames
        if count == 1:
            return found
        return replace(found, train_frames=EvenFrames(count), held_out_frames=EvenFrames(count))

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B clips, each with the frames that the model takes."""
        fbank, frames = self.inputs(batch)
        if self.config.roll:
            fbank = roll_time(fbank, batch.seeds)
        first = self.view(fbank, frames, batch.seeds, 0, decode=self.config.decodes)
        losses = self.prediction_losses(first, fbank, frames)
        if self.config.inter_weight:
            losses |= self._inter(first)
        if self.config.intra_weight:
            losses |= self._intra(first, self.view(fbank, frames, batch.seeds, 1, decode=False))
        total = sum(weight * losses[name] for name, weight in self.loss_weights().items() if weight)
        assert isinstance(total, Tensor)
        return detached({"loss": total, **losses})

    def view(self, fbank: Tensor, frames: Tensor, seeds: Tensor, number: int, *, decode: bool) -> MavilView:
        """The model's pass with the masks that belong to ``seeds`` and the view's number."""
        config = self.model.config
        noise_audio = uniform(seeds, pass_stream(Stream.MASK_AUDIO, number), (config.num_audio_tokens,))
        noise_visual = uniform(seeds, pass_stream(Stream.MASK_VISUAL, number), (config.num_visual_tokens,))
        return self.model(fbank, frames, noise_audio, noise_visual, decode=decode)

    def prediction_losses(self, view: MavilView, fbank: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """What the decoders of the first view are trained for: ``MSE`` over removed patches of each modality."""
        if not self.config.reconstruction_weight:
            return {}
        audio, visual = self.predicted_patches(view)
        encoder, norm_pix = self.model.encoder, self.model.config.norm_pix_loss
        return {
            "loss_mae_audio": reconstruction_loss(
                audio, encoder.patchify_audio(fbank), view.audio.mask, norm_pix
            ),
            "loss_mae_visual": reconstruction_loss(
                visual, encoder.patchify_visual(frames), view.visual.mask, norm_pix
            ),
        }

    def predicted_patches(self, view: MavilView) -> tuple[Tensor, Tensor]:
        """(B, La, P*P) and (B, Lv, tubelet*P*P*3) of a decoded view."""
        decoder = self.model.decoder
        return decoder.audio.pred(view.decoded_audio), decoder.visual.pred(view.decoded_visual)

    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss, by its name."""
        config = self.config
        return {
            "loss_mae_audio": config.reconstruction_weight,
            "loss_mae_visual": config.reconstruction_weight,
            "loss_inter": config.inter_weight,
            "loss_intra": config.intra_weight,
        }

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.pictures`: reconstructions of all frames and of spectrograms."""
        if not self.config.reconstruction_weight:
            return {}
        model, (fbank, frames) = self.model, self.inputs(batch)
        view = self.view(fbank, frames, batch.seeds, 0, decode=True)
        audio, visual = self.predicted_patches(view)
        encoder, norm_pix, invert = model.encoder, model.config.norm_pix_loss, self.visual_front_end.invert
        films = Patches(encoder.patchify_visual(frames), visual, view.visual.mask, norm_pix)
        sounds = Patches(encoder.patchify_audio(fbank), audio, view.audio.mask, norm_pix)
        return {
            "reconstruction/frames": film_sheet(frames, films, model.unpatchify_visual, invert),
            "reconstruction/spectrograms": spectrogram_sheet(fbank, sounds, model.unpatchify_audio),
        }

    def _inter(self, view: MavilView) -> dict[str, Tensor]:
        """``NCE(e_a ↔ e_v; τ_inter)`` of one view's means."""
        audio, visual = clip_vectors(view)
        loss, accuracy = self._both_ways(audio, visual, self.config.inter_temperature)
        return {"loss_inter": loss, "inter_accuracy": accuracy}

    def _intra(self, first: MavilView, second: MavilView) -> dict[str, Tensor]:
        """``½ Σ_m NCE(e_m¹ ↔ e_m²; τ_intra)`` over audio and visual means of two views."""
        pairs = zip(clip_vectors(first), clip_vectors(second), strict=True)
        found = [self._both_ways(one, other, self.config.intra_temperature) for one, other in pairs]
        loss, accuracy = (torch.stack(values).mean() for values in zip(*found, strict=True))
        return {"loss_intra": loss, "intra_accuracy": accuracy}

    def _both_ways(self, one: Tensor, other: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """``½ [NCE(one → other) + NCE(other → one)]`` and its accuracy; rows are this rank's, columns those of all."""
        local = self.config.negatives == "local"
        first = 0 if local else rank() * len(one)
        found = [
            info_nce(queries, keys if local else gather_rows(keys), first, temperature)
            for queries, keys in ((one, other), (other, one))
        ]
        loss, accuracy = (torch.stack(values).mean() for values in zip(*found, strict=True))
        return loss, accuracy

    def _freeze_unused(self) -> None:
        """What no loss reaches is not trained: the decoders' last layers, or all behind the towers."""
        if not self.config.decodes:
            self.model.encoder.fusion.requires_grad_(False)
            self.model.decoder.requires_grad_(False)
        for decoder in (self.model.decoder.audio, self.model.decoder.visual):
            decoder.pred.requires_grad_(self.config.reconstruction_weight > 0)
            decoder.pred_features.requires_grad_(self.predicts_features)

    @property
    def predicts_features(self) -> bool:
        """Whether the decoders predict a teacher's features."""
        return False

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`."""
        config = self.model.config
        kept, views = (config.num_kept_audio, config.num_kept_visual), 2 if self.config.intra_weight else 1
        outputs = {"patches": self.config.reconstruction_weight > 0, "features": self.predicts_features}
        flops = views * tower_flops(config, *kept)
        activations = encoder_bytes(config, *kept, bf16, fuse=self.config.decodes)
        activations += (views - 1) * encoder_bytes(config, *kept, bf16, fuse=False)
        if self.config.decodes:
            flops += fusion_flops(config, *kept) + decoder_flops(config, **outputs)
            activations += decoder_bytes(config, bf16, **outputs)
        return Workload(3.0 * flops, activations)


def clip_vectors(view: MavilView) -> tuple[Tensor, Tensor]:
    """(B, D) audio and (B, D) visual: the means of the towers' tokens, without the CLS tokens."""
    assert view.towers.audio is not None
    assert view.towers.visual is not None
    return mean_of_patches(view.towers.audio), mean_of_patches(view.towers.visual)


register_objective(
    ObjectiveKind("mavil", MavilConfig, Mavil, families=("mavil",), default_model="mavil_base")
)
