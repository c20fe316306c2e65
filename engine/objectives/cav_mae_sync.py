"""CAV-MAE Sync (Araujo et al., CVPR 2025, arXiv 2505.01237): each picture beside the sound around it.

``loss = w_r · (MSE_audio + MSE_visual) + λ · InfoNCE(global tokens)``. One stored picture of a clip is taken in
training, and of the clip's spectrogram, which is computed once, the stretch that `segment_starts` gives it. Retrieval
compares all pictures of a clip with all its stretches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.frames import EvenFrames, RandomFrame
from engine.evaluation.features import Features
from engine.evaluation.pair_scores import pair_score
from engine.evaluation.retrieval import cross_modal_retrieval
from engine.objectives.base import ClipNeeds, PretrainingObjective, detached
from engine.objectives.masked_contrast import MaskedContrastConfig, Reconstruction, cross_modal_contrast
from engine.objectives.registry import ObjectiveKind, register_objective
from models import CavMaeSync, FbankConfig, Stream, Workload, pass_stream, uniform
from models.cav_mae_sync.encoder import SyncStreams
from models.cav_mae_sync.model import SyncOutput
from models.cav_mae_sync.segments import cut_segments, published_middles, segment_starts
from models.cav_mae_sync.workload import Pass, pass_bytes, pass_flops
from models.layers.masking import Mask, Masker, num_kept


@dataclass(frozen=True)
class CavMaeSyncConfig(MaskedContrastConfig):
    """Weights and settings of the losses.

    Attributes:
        kind: ``cav_mae_sync``.
        contrast_weight: λ (published: 0.1).
        local_contrast: Contrast the mean patches too, and take the mean of both contrasts (a published option).
        frames: Stored frames a clip must have; as many pairs of frame and stretch are compared in retrieval
            (published: 16).
        align_by_time: Cut sound around the time at which a frame is shown, where the set knows it (sets made by
            ``datasets.prepare`` do), and else by the length of the clip's own sound. The published rule takes frame i
            of N to be shown at i/N of the whole padded spectrogram, which shorter clips do not fill.
        retrieval_score: diagonal_mean (published), diagonal_max, mean or max of the cosines of these.
    """

    kind: str = "cav_mae_sync"
    contrast_weight: float = 0.1
    local_contrast: bool = False
    frames: int = 16
    align_by_time: bool = False
    retrieval_score: str = "diagonal_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 2:
            raise ValueError(
                f"objective.frames is {self.frames}: at least 2 are needed for sound to be aligned with one of them"
            )
        try:
            pair_score(self.retrieval_score)
        except ValueError as error:
            raise ValueError(f"objective.retrieval_score: {error}") from error


class CavMaeSyncObjective(PretrainingObjective[CavMaeSync]):
    """CAV-MAE Sync's losses on a `CavMaeSync`.

    Args:
        model: The masked autoencoder.
        fbank: The whole spectrogram's settings.
        config: The losses' settings.
    """

    def __init__(self, model: CavMaeSync, fbank: FbankConfig, config: CavMaeSyncConfig) -> None:
        super().__init__(model, fbank, config)
        self.config = config
        self.masker = Masker(model.config)

    def needs(self) -> ClipNeeds:
        """One frame at random in training, all in evaluation."""
        return replace(
            super().needs(),
            train_frames=RandomFrame(self.config.frames),
            held_out_frames=EvenFrames(self.config.frames),
        )

    @torch.no_grad()
    def pairs(self, batch: AVBatch) -> tuple[Tensor, Tensor]:
        """(B, N, rows, F) stretches of normalised fbank, and (B, N, 3, H, W) the normalised frames they belong to."""
        fbank, frames = self.inputs(batch)
        rows = self.model.config.segment_length
        length, middles = self._middles(batch)
        return cut_segments(fbank, segment_starts(middles, length, rows), rows), frames

    def _middles(self, batch: AVBatch) -> tuple[int | Tensor, Tensor]:
        """Rows of the spectrograms, and (B, N) the rows at which frames are shown; see ``align_by_time``."""
        assert batch.frame_index is not None
        assert batch.num_stored is not None
        assert batch.num_samples is not None
        fbank = self.audio_front_end.config
        if not self.config.align_by_time:
            length = fbank.target_length
            return length, published_middles(batch.frame_index, batch.num_stored, length)
        length = (batch.num_samples // fbank.frame_shift).clamp(1, fbank.target_length)
        middles = published_middles(batch.frame_index, batch.num_stored, length)
        if batch.frame_times is None:
            return length, middles
        shown = batch.frame_times * (fbank.sample_rate / fbank.frame_shift)
        return length, torch.where(shown.isfinite(), shown, middles.float()).round().long()

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B clips, each with one frame."""
        segments, frames = self.pairs(batch)
        values = self.losses(segments[:, 0], frames[:, 0], batch.seeds)
        weights = self.weights()
        total = torch.stack(
            [weights[name] * value for name, value in values.items() if name in weights]
        ).sum()
        return detached({"loss": total, **values})

    def weights(self) -> dict[str, float]:
        """By name, the weights of what `losses` returns; the rest is only logged."""
        reconstruction = dict.fromkeys(
            ("loss_mae_audio", "loss_mae_visual"), self.config.reconstruction_weight
        )
        return reconstruction | {"loss_contrastive": self.config.contrast_weight}

    def losses(self, fbank: Tensor, frames: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """The losses of pairs, before their weights.

        Args:
            fbank: (B, rows, F) stretches.
            frames: (B, 3, H, W) their frames.
            seeds: (B,) of the clips, from which the masks derive.
        """
        config, values, streams = self.config, {}, None
        if config.reconstructs or not config.two_passes:
            masks = self.random_masks(seeds)
            output = self.model(
                fbank, frames, *masks, reconstruct=config.reconstructs, contrast=not config.two_passes
            )
            streams = output.streams
            if config.reconstructs:
                values |= _reconstruction(fbank, frames, masks, output).losses(self.model)
        if config.two_passes:
            streams, more = self.contrast_pass(fbank, frames, seeds)
            values |= more
        if config.contrasts:
            assert streams is not None
            values |= self.contrast_losses(streams)
        return values

    def contrast_pass(
        self, fbank: Tensor, frames: Tensor, seeds: Tensor
    ) -> tuple[SyncStreams, dict[str, Tensor]]:
        """The streams of a pass of its own for the contrast, and further losses of it; arguments as of `losses`."""
        masks = self.random_masks(seeds, 1, self.config.contrast_mask_ratio)
        return self.model(fbank, frames, *masks, reconstruct=False).streams, {}

    def random_masks(self, seeds: Tensor, number: int = 0, ratio: float | None = None) -> tuple[Mask, Mask]:
        """The masks of the ``number``-th pass; ``ratio`` is removed, by default what the model's config says."""
        config = self.model.config
        audio = uniform(seeds, pass_stream(Stream.MASK_AUDIO, number), (config.num_audio_tokens,))
        visual = uniform(seeds, pass_stream(Stream.MASK_VISUAL, number), (config.num_visual_tokens,))
        return self.masker.audio(audio, ratio), self.masker.visual(visual, ratio)

    def contrast_losses(self, streams: SyncStreams) -> dict[str, Tensor]:
        """The contrast of global tokens, or the mean of theirs and that of mean patches."""
        assert streams.global_audio is not None
        assert streams.global_visual is not None
        found = cross_modal_contrast(self.config, streams.global_audio, streams.global_visual)
        if not self.config.local_contrast:
            return found
        assert streams.audio is not None
        assert streams.visual is not None
        means = streams.audio.float().mean(dim=1), streams.visual.float().mean(dim=1)
        local = cross_modal_contrast(self.config, *means)
        return {name: (value + local[name]) / 2 for name, value in found.items()}

    def embed(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.embed`: (B, N, D) global tokens of each pair, and the mean of all joint patches."""
        segments, frames = self.pairs(batch)
        streams = self.model.encoder(segments.flatten(0, 1), frames.flatten(0, 1))
        assert streams.joint is not None
        found = {"audio": streams.global_audio, "visual": streams.global_visual}
        found = {name: rearrange(x, "(b n) d -> b n d", b=len(batch)).float() for name, x in found.items()}
        joint = rearrange(streams.joint, "(b n) l d -> b (n l) d", b=len(batch))
        return found | {"audio_visual": joint.float().mean(dim=1)}

    def measure(self, features: Features) -> dict[str, float]:
        """See `PretrainingObjective.measure`: retrieval by the score of all pairs."""
        streams = features.streams
        return cross_modal_retrieval(streams["audio"], streams["visual"], score=self.config.retrieval_score)

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.pictures`: reconstructions of each clip's middle pair, where they are learned."""
        if not self.config.reconstructs:
            return {}
        segments, frames = self.pairs(batch)
        middle = frames.shape[1] // 2
        pair, masks = (segments[:, middle], frames[:, middle]), self.random_masks(batch.seeds)
        output = self.model(*pair, *masks, contrast=False)
        return _reconstruction(*pair, masks, output).pictures(self.model, self.visual_front_end)

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`."""
        passes, model = self.passes(), self.model.config
        flops = 3.0 * sum(pass_flops(model, work) for work in passes)
        return Workload(flops, sum(pass_bytes(model, work, bf16) for work in passes))

    def passes(self) -> list[Pass]:
        """The passes of a step that are differentiated."""
        model, config = self.model.config, self.config
        kept = (model.num_kept_audio, model.num_kept_visual)
        found = []
        if config.reconstructs or not config.two_passes:
            found.append(Pass(*kept, config.reconstructs, not config.two_passes, decode=config.reconstructs))
        if config.two_passes:
            ratio = config.contrast_mask_ratio
            assert ratio is not None
            tokens = (model.num_audio_tokens, model.num_visual_tokens)
            found.append(Pass(*(num_kept(count, ratio) for count in tokens), joint=False))
        return found


def _reconstruction(
    fbank: Tensor, frames: Tensor, masks: tuple[Mask, Mask], output: SyncOutput
) -> Reconstruction:
    assert output.pred_audio is not None
    assert output.pred_visual is not None
    return Reconstruction(fbank, frames, output.pred_audio, output.pred_visual, masks[0].mask, masks[1].mask)


register_objective(
    ObjectiveKind(
        "cav_mae_sync", CavMaeSyncConfig, CavMaeSyncObjective, ("cav_mae_sync",), "cav_mae_sync_base"
    )
)
