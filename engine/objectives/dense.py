"""Dense grounding: which pixels make the sound (max-mean of seed AV-Align; DenseAV, Hamilton et al. 2024).

``loss = contrast of all pairs' similarities + Σ weight · regulariser``. A pair's similarity is made of all its tokens'
(`models.dense.similarity`); the negatives are the clips of all ranks. Every rank computes the rows of its own sounds,
and all losses from the rows of all, so that they are those of one process with the joint batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from datasets.batch import AVBatch
from engine.evaluation.features import Features
from engine.evaluation.heat_pictures import heat_sheet
from engine.evaluation.retrieval import similarity_retrieval
from engine.objectives.base import LrGroup, ObjectiveConfig, PretrainingObjective, detached, first_step
from engine.objectives.dense_terms import JointTokens, TermWeights, regularizing_terms
from engine.objectives.registry import ObjectiveKind, register_objective
from engine.parallel.world import gather_rows, rank
from models import FbankConfig, ModelConfig, Workload
from models.dense import contrast
from models.dense.config import DenseModelConfig
from models.dense.encoder import DenseTokens
from models.dense.mixing import mix_pictures, splice_sounds
from models.dense.model import DenseModel
from models.dense.regularizers import NegativeSimilarity
from models.dense.similarity import Reduction, reduce_pairs, similarities
from models.dense.workload import workload
from models.towers import Sound
from models.towers.sources import check_sound

_CONTRASTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "nce": contrast.nce,
    "bce": contrast.binary_cross_entropy,
    "hinge": lambda logits, leak: contrast.hinge(logits),
}


@dataclass(frozen=True)
class DenseConfig(ObjectiveConfig):
    """Losses and stages of dense grounding.

    Attributes:
        kind: ``dense``.
        contrast: ``nce`` in both directions, ``bce``, or ``hinge``.
        leak: Share of the target given to the other pairs (nce, bce).
        margin: Taken off every match before the contrast.
        weights: Of the regularisers.
        num_drawn: Tokens drawn for nonnegativity and silence.
        splice_share: Share of the clips that get a stretch of another's sound.
        mix_share: Share of the clips that get a part of another's picture.
        audio_from_epoch: The tower for sound is frozen until this epoch (may be a fraction).
        visual_from_epoch: The tower for pictures likewise.
        audio_lr_ratio: The tower's peak rate over that of the heads; its schedule begins when it is unfrozen.
        visual_lr_ratio: Likewise.
    """

    kind: str = "dense"
    contrast: Literal["nce", "bce", "hinge"] = "nce"
    leak: float = 0.0
    margin: float = 0.0
    weights: TermWeights = field(default_factory=TermWeights)
    num_drawn: int = 250
    splice_share: float = 0.0
    mix_share: float = 0.0
    audio_from_epoch: float = 0.0
    visual_from_epoch: float = 0.0
    audio_lr_ratio: float = 1.0
    visual_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.contrast not in _CONTRASTS:
            known = ", ".join(_CONTRASTS)
            raise ValueError(f"objective.contrast is {self.contrast!r}: it must be one of {known}")
        for name in ("leak", "splice_share", "mix_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must lie in 0 … 1")
        for name in ("margin", "audio_from_epoch", "visual_from_epoch"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("audio_lr_ratio", "visual_lr_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}: it must be above 0")
        if self.num_drawn < 1:
            raise ValueError(f"objective.num_drawn is {self.num_drawn}: it must be at least 1")
        for term, share in (("spliced_audio", "splice_share"), ("mixed_picture", "mix_share")):
            if getattr(self.weights, term) > 0 and not getattr(self, share):
                raise ValueError(
                    f"objective.weights.{term} is above 0 and objective.{share} is 0: it would have nothing to say"
                )

    def check(self, model: ModelConfig) -> None:
        """See `ObjectiveConfig.check`."""
        config = cast(DenseModelConfig, model)
        for name, tower in (("audio", config.audio), ("visual", config.visual)):
            if tower.source is None and getattr(self, f"{name}_from_epoch") > 0:
                raise ValueError(
                    f"objective.{name}_from_epoch is above 0 and model.{name}.source is null: a random tower would "
                    "stay random until then"
                )


class Dense(PretrainingObjective[DenseModel]):
    """The contrast and its regularisers on a `DenseModel`.

    Args:
        model: The towers and heads.
        fbank: The spectrogram's settings.
        config: The losses' settings.

    Raises:
        ValueError: A trained tower for sound is made for other spectrograms, or another sample rate.
    """

    def __init__(self, model: DenseModel, fbank: FbankConfig, config: DenseConfig) -> None:
        super().__init__(model, fbank, config)
        check_sound(model.encoder.audio_tower, fbank)
        self.config = config
        self._frozen_audio = self._frozen_visual = False

    def before_step(self, step: int, steps_per_epoch: float) -> None:
        """See `Objective.before_step`: which towers are frozen."""
        self._frozen_audio = step < first_step(self.config.audio_from_epoch, steps_per_epoch)
        self._frozen_visual = step < first_step(self.config.visual_from_epoch, steps_per_epoch)

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B clips, each with one frame."""
        config, model = self.config, self.model
        tokens, joint = self._joint(batch)
        reductions: list[Reduction] = [model.config.similarity.reduce]
        if config.weights.negative_similarity > 0:
            reductions.append(NegativeSimilarity(model.scale.factor()))
        rows = reduce_pairs(tokens.audio, joint.visual, model.encoder.weight(tokens), reductions)
        found = [gather_rows(x) for x in rows]
        logits = model.scale(found[0])
        loss = _CONTRASTS[config.contrast](contrast.with_margin(logits, config.margin), config.leak)
        terms = regularizing_terms(joint, config.weights, config.num_drawn, model.config.similarity.clamp)
        if config.weights.negative_similarity > 0:
            terms["negative_similarity"] = found[1].mean()
        if config.weights.scale > 0:
            terms["scale"] = model.scale.penalty()
        total = loss + sum(getattr(config.weights, name) * term for name, term in terms.items())
        accuracy = torch.stack(contrast.accuracy(logits)).mean()
        return detached(
            {
                "loss": total,
                "loss_contrastive": loss,
                **{f"loss_{name}": term for name, term in terms.items()},
                "contrastive_accuracy": accuracy,
                "contrastive_chance": torch.full_like(loss, 1 / len(logits)),
                "scale": model.scale.factor().squeeze(),
            }
        )

    def _joint(self, batch: AVBatch) -> tuple[DenseTokens, JointTokens]:
        """This rank's tokens and those of all."""
        waveform, frames, own_sound, own_picture = self._mixed(batch)
        tokens = self._tokens(waveform, batch, frames)
        own_sound = F.adaptive_avg_pool1d(own_sound[:, None], tokens.real.shape[1])[:, 0]
        own_picture = F.adaptive_avg_pool2d(own_picture, tokens.grid).flatten(1)
        own = (tokens.audio, tokens.visual, tokens.real, tokens.sound, own_sound, own_picture, batch.seeds)
        audio, visual, real, sound, own_sound, own_picture, seeds = (gather_rows(x) for x in own)
        joint = JointTokens(audio, visual, real, sound, own_sound, own_picture, seeds)
        return tokens, joint

    @torch.no_grad()
    def _mixed(self, batch: AVBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Waveforms and frames with parts of the next clip's of all ranks where that is asked for, and what is own."""
        waveform, frames, lengths = _present(batch)
        own_sound = torch.ones(waveform.shape, device=waveform.device)
        own_picture = torch.ones(len(frames), *frames.shape[-2:], device=frames.device)
        if self.config.splice_share > 0:
            waveform, own_sound = splice_sounds(
                waveform, _next(waveform), lengths, batch.seeds, self.config.splice_share
            )
        if self.config.mix_share > 0:
            frames, own_picture = mix_pictures(frames, _next(frames), batch.seeds, self.config.mix_share)
        return waveform, frames, own_sound, own_picture

    def _tokens(self, waveform: Tensor, batch: AVBatch, frames: Tensor) -> DenseTokens:
        assert batch.num_samples is not None
        sound = Sound.of(self.audio_front_end, waveform, batch.num_samples)
        pictures = self.visual_front_end(frames)
        return self.model.encoder(sound, pictures, self._frozen_audio, self._frozen_visual)

    def tokens(self, batch: AVBatch) -> DenseTokens:
        """The tokens of a batch as it is, nothing mixed."""
        waveform, frames, _ = _present(batch)
        return self._tokens(waveform, batch, frames)

    def embed(self, batch: AVBatch) -> dict[str, Tensor]:
        """The tokens: ``audio`` (B, K·T, C), ``visual`` (B, K·P, C); and ``weight`` (B, T) of the moments."""
        tokens = self.tokens(batch)
        return {
            "audio": tokens.audio.flatten(1, 2).float(),
            "visual": tokens.visual.flatten(1, 2).float(),
            "weight": self.model.encoder.weight(tokens),
        }

    def measure(self, features: Features) -> dict[str, float]:
        """Retrieval by the dense similarity itself."""
        heads = self.model.config.num_heads
        audio, visual = (
            rearrange(features.streams[name], "n (k l) c -> n k l c", k=heads) for name in ("audio", "visual")
        )
        rule = self.model.config.similarity
        return similarity_retrieval(similarities(audio, visual, features.streams["weight"], rule))

    def probed(self, features: Features) -> dict[str, Tensor]:
        """The means of the tokens of each modality, all heads side by side."""
        heads = self.model.config.num_heads
        return {
            name: rearrange(features.streams[name], "n (k l) c -> n l (k c)", k=heads).mean(1)
            for name in ("audio", "visual")
        }

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """Each clip's frame beside its heat over the time of the clip."""
        tokens = self.tokens(batch)
        _, frames, _ = _present(batch)
        heat = rearrange(self.model.heat(tokens), "b (h w) t -> b t h w", h=tokens.grid[0], w=tokens.grid[1])
        return {"heat": heat_sheet(frames[:, 0], heat, tokens.real)}

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def lr_groups(self) -> dict[str, LrGroup]:
        """See `Objective.lr_groups`: the towers' own peak rates, from the epoch at which they are unfrozen."""
        config = self.config
        groups = {
            "audio_tower": LrGroup("audio_tower", config.audio_lr_ratio, config.audio_from_epoch),
            "visual_tower": LrGroup("visual_tower", config.visual_lr_ratio, config.visual_from_epoch),
        }
        places = {
            name: name.split(".")[1] for name, _ in self.model.encoder.named_parameters(prefix="encoder")
        }
        return {name: groups[tower] for name, tower in places.items() if tower in groups}

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`; with all towers trained that ever are."""
        model, num_samples = self.model, self.audio_front_end.config.num_samples
        return workload(model.encoder, model.config, num_samples, bf16)


def _present(batch: AVBatch) -> tuple[Tensor, Tensor, Tensor]:
    assert batch.waveform is not None
    assert batch.frames is not None
    assert batch.num_samples is not None
    return batch.waveform, batch.frames, batch.num_samples


def _next(rows: Tensor) -> Tensor:
    """For each of this rank's rows the one that follows it among those of all ranks."""
    everyone = gather_rows(rows.contiguous().view(torch.uint8)).view(
        rows.dtype
    )  # gloo knows no 16-bit integers
    places = rank() * len(rows) + 1 + torch.arange(len(rows), device=rows.device)
    return everyone[places % len(everyone)]


register_objective(
    ObjectiveKind(
        name="dense", config=DenseConfig, build=Dense, families=("dense",), default_model="dense_tiny"
    )
)
