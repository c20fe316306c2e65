"""EquiAV (Kim et al. 2024): what a described transformation does to a feature, and contrast of what all of them share.

``loss = w · InfoNCE(z_inv_audio ↔ z_inv_visual; τ_inter) + Σ_m w_m · NT-Xent(z_equi_m, z_aug_m; τ_intra)``. ``z_equi``
is predicted from the original and the description of a transformation, ``z_aug`` comes from the transformed input, and
``z_inv`` from the mean prediction over several transformations that nothing goes through, their centroid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from datasets.batch import AVBatch
from engine.evaluation.features import Features
from engine.evaluation.reconstructions import colour_spectrogram, grid
from engine.evaluation.retrieval import cross_modal_retrieval
from engine.objectives.base import ObjectiveConfig, PretrainingObjective, detached
from engine.objectives.registry import ObjectiveKind, register_objective
from engine.parallel.world import gather_rows, rank
from models import EquiAv, FbankConfig, ModelConfig, Workload, info_nce, nt_xent, roll_time
from models.equiav.model import Projections
from models.equiav.transforms import AudioTransform, TransformConfig, VisualTransform, draw_centroids
from models.equiav.workload import head_bytes, head_flops, tower_bytes, tower_flops

#: Of the transformations whose centroid is taken in evaluation, the same for every clip and every run.
_EVALUATION_SEED = 240309502
_LEAST_SIZE = 16


@dataclass(frozen=True)
class EquiAvConfig(ObjectiveConfig):
    """Weights and settings of the losses.

    Attributes:
        kind: ``equiav``.
        inter_weight: Weight of the contrast across modalities (published: a third, like the next two). With a weight of
            0 a loss is logged and teaches nothing.
        audio_weight: Weight of the contrast within the sound.
        visual_weight: Weight of the contrast within the pictures.
        temperature_inter: τ across modalities (published: 0.07).
        temperature_intra: τ within a modality (published: 0.07).
        centroid: Transformations whose mean prediction is contrasted across modalities (published: 16); 0 contrasts the
            mean token instead.
        roll: Whether the original spectrogram is rolled in time by any length first, as published.
        transforms: How inputs are transformed.
    """

    kind: str = "equiav"
    inter_weight: float = 1 / 3
    audio_weight: float = 1 / 3
    visual_weight: float = 1 / 3
    temperature_inter: float = 0.07
    temperature_intra: float = 0.07
    centroid: int = 16
    roll: bool = True
    transforms: TransformConfig = field(default_factory=TransformConfig)

    def __post_init__(self) -> None:
        weights = ("inter_weight", "audio_weight", "visual_weight")
        for name in (*weights, "centroid"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be 0 or more")
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"objective.{', '.join(weights)} are all 0: nothing to learn")
        for name in ("temperature_inter", "temperature_intra"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be above 0")

    def check(self, model: ModelConfig) -> None:
        """See `ObjectiveConfig.check`."""
        for name in ("image_size", "audio_length", "num_mel_bins"):
            if getattr(model, name) < _LEAST_SIZE:
                raise ValueError(
                    f"model.{name} is {getattr(model, name)}; blurring as EquiAV does needs at least {_LEAST_SIZE}"
                )


@dataclass(frozen=True)
class Views:
    """A batch as it is and transformed.

    Attributes:
        fbank: (B, T, F) normalised.
        fbank_transformed: (B, T, F).
        frames: (B, 3, H, W) normalised.
        frames_transformed: (B, 3, H, W).
        description_audio: (B, 24) of the spectrograms' transformations.
        description_visual: (B, 18) of the pictures'.
    """

    fbank: Tensor
    fbank_transformed: Tensor
    frames: Tensor
    frames_transformed: Tensor
    description_audio: Tensor
    description_visual: Tensor


class EquiAvObjective(PretrainingObjective[EquiAv]):
    """EquiAV's three losses.

    Args:
        model: The towers with predictors and heads.
        fbank: The spectrogram's settings.
        config: The losses' settings.
    """

    def __init__(self, model: EquiAv, fbank: FbankConfig, config: EquiAvConfig) -> None:
        super().__init__(model, fbank, config)
        self.config = config
        self._audio_size = (model.config.audio_length, model.config.num_mel_bins)
        self._visual_size = (model.config.image_size, model.config.image_size)

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B clips, each with one frame."""
        views, config = self.views(batch), self.config
        centroids = self._centroids(batch.seeds)
        audio, visual = self.model(
            (views.fbank, views.fbank_transformed),
            (views.frames, views.frames_transformed),
            (views.description_audio, views.description_visual),
            centroids,
        )
        losses = self._inter(audio.inter, visual.inter)
        for name, projections in (("audio", audio), ("visual", visual)):
            losses[f"loss_{name}"], losses[f"{name}_accuracy"] = self._intra(projections)
        total = (
            config.inter_weight * losses["loss_inter"]
            + config.audio_weight * losses["loss_audio"]
            + config.visual_weight * losses["loss_visual"]
        )
        return detached({"loss": total, **losses})

    @torch.no_grad()
    def views(self, batch: AVBatch) -> Views:
        """Original and transformed inputs; each sample's transformation derives from its seed."""
        assert batch.frames is not None
        fbank, frames = self.inputs(batch)
        if self.config.roll:
            fbank = roll_time(fbank, batch.seeds)
        config = self.config.transforms
        with torch.autocast(fbank.device.type, enabled=False):
            audio = AudioTransform.draw(batch.seeds, self._audio_size, config)
            visual = VisualTransform.draw(batch.seeds, self._visual_size, config)
            pictures = visual.apply(batch.frames[:, 0].float() / 255)
            return Views(
                fbank=fbank,
                fbank_transformed=audio.apply(fbank),
                frames=frames[:, 0],
                frames_transformed=self.visual_front_end(255 * pictures),
                description_audio=audio.describe(),
                description_visual=visual.describe(),
            )

    @torch.no_grad()
    def _centroids(self, seeds: Tensor) -> tuple[Tensor, Tensor] | None:
        """(B, N, 24) and (B, N, 18) descriptions for the centroid; None without one."""
        if self.config.centroid == 0:
            return None
        sizes = (self._audio_size, self._visual_size)
        return draw_centroids(seeds, self.config.centroid, *sizes, self.config.transforms)

    def _inter(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """Contrast across modalities, both ways: rows are this rank's clips, columns those of all ranks."""
        first, temperature = rank() * len(audio), self.config.temperature_inter
        keys = gather_rows(visual)
        forth, hits = info_nce(audio, keys, first, temperature)
        back, back_hits = info_nce(visual, gather_rows(audio), first, temperature)
        return {
            "loss_inter": (forth + back) / 2,
            "inter_accuracy": (hits + back_hits) / 2,
            "inter_chance": torch.full_like(hits, 1 / len(keys)),
        }

    def _intra(self, views: Projections) -> tuple[Tensor, Tensor]:
        """Contrast within a modality over all views of all ranks: the loss and its accuracy."""
        first, temperature = rank() * len(views.predicted), self.config.temperature_intra
        predicted, augmented = gather_rows(views.predicted), gather_rows(views.augmented)
        forth, hits = nt_xent(views.predicted, augmented, predicted, first, temperature)
        back, back_hits = nt_xent(views.augmented, predicted, augmented, first, temperature)
        return (forth + back) / 2, (hits + back_hits) / 2

    def embed(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.embed`: mean tokens, and ``z_inv`` of each modality, which is what is contrasted.

        The centroid is that of the same transformations for every clip.
        """
        fbank, frames = self.inputs(batch)
        audio, visual = self.model.encoder(fbank, frames[:, 0])
        fixed = torch.full((1,), _EVALUATION_SEED, device=fbank.device)
        centroids = self._centroids(fixed) or (None, None)
        found = {"audio": audio.float().mean(dim=1), "visual": visual.float().mean(dim=1)}
        found["audio_visual"] = torch.cat([found["audio"], found["visual"]], dim=1)
        heads = self.model.heads
        parts = ((heads.audio, audio, "audio"), (heads.visual, visual, "visual"))
        for (head, tokens, name), centroid in zip(parts, centroids, strict=True):
            shared = None if centroid is None else centroid.expand(len(tokens), -1, -1)
            found[f"inter_{name}"] = head.invariant(tokens, shared).float()
        return found

    def measure(self, features: Features) -> dict[str, float]:
        """See `PretrainingObjective.measure`: retrieval by ``z_inv``."""
        return cross_modal_retrieval(features.streams["inter_audio"], features.streams["inter_visual"])

    def probed(self, features: Features) -> dict[str, Tensor]:
        """See `PretrainingObjective.probed`: mean tokens, which are what is kept of the model."""
        return {name: features.streams[name] for name in ("audio", "visual", "audio_visual")}

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.pictures`: what the transformations do."""
        views, titles = self.views(batch), ["input", "transformed"]
        low, high = (
            views.fbank.flatten(1).quantile(0.01, dim=1),
            views.fbank.flatten(1).quantile(0.995, dim=1),
        )
        frames = [self.visual_front_end.invert(x) for x in (views.frames, views.frames_transformed)]
        spectrograms = [colour_spectrogram(x, low, high) for x in (views.fbank, views.fbank_transformed)]
        return {"views/frames": grid(frames, titles), "views/spectrograms": grid(spectrograms, titles)}

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`: original and transformed input pass the towers."""
        model, count = self.model.config, self.config.centroid
        return Workload(
            3 * (2 * tower_flops(model, True, True) + head_flops(model, count)),
            2 * tower_bytes(model, True, True, bf16) + head_bytes(model, count, bf16),
        )


register_objective(ObjectiveKind("equiav", EquiAvConfig, EquiAvObjective, ("equiav",), "equiav_base"))
