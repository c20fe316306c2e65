"""MAViL's second stage: a masked student predicts what a frozen teacher says of the whole clip.

``loss = w_c · (MSE_audio + MSE_visual) + α · L_inter + β · L_intra (+ w_r · raw reconstruction)``, where the targets
are the outputs of the teacher's fusion blocks, aligned and contextualised by the first stage.

Known of the paper (its abstract): self-training on contextualised audio-visual representations of the first stage.
Recalled and not verified: the fusion outputs as targets, contrast kept, three rounds. Defaults of ours, each with its
option: removed tokens count; targets are normalised token by token; raw reconstruction is replaced; the student starts
where the first stage started.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import AVBatch
from engine.evaluation.feature_pictures import colours_of_film, colours_of_spectrogram, feature_colours
from engine.evaluation.reconstructions import film_rows, grid, own_colours
from engine.objectives.mavil import Mavil, MavilConfig
from engine.objectives.registry import ObjectiveKind, register_objective
from engine.objectives.teacher import FrozenTeacher
from engine.parallel.world import World
from models import FbankConfig, ModelConfig, Workload, reconstruction_loss
from models.mavil.config import MavilModelConfig
from models.mavil.mae import MavilMAE, MavilView
from models.mavil.workload import fusion_flops, tower_flops

#: What a teacher and its student must have in common: then their tokens are the same patches, and as wide.
_SHARED = (
    "image_size", "audio_length", "num_mel_bins", "frames", "tubelet", "patch_size", "encoder_width",
)  # fmt: skip


@dataclass(frozen=True)
class MavilSelfTrainingConfig(MavilConfig):
    """Weights and settings of the losses; the first stage's, of which raw reconstruction is off, and its own.

    Attributes:
        kind: ``mavil_self_training``.
        teacher: The first stage's model, or an earlier round's: a run, a checkpoint, an exported model, a published
            file.
        context_weight: Weight of the two losses on the teacher's features (published: 1).
        reconstruction_weight: Weight of raw reconstruction beside them.
        normalize_targets: LayerNorm without weights on each of the teacher's tokens.
        predict_kept: Whether kept tokens count too, not the removed ones alone.
        start_from_teacher: Whether the student's encoder begins with the teacher's weights.
    """

    kind: str = "mavil_self_training"
    teacher: str = ""
    context_weight: float = 1.0
    reconstruction_weight: float = 0.0
    normalize_targets: bool = True
    predict_kept: bool = False
    start_from_teacher: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.context_weight:
            raise ValueError("objective.context_weight is 0: without it this is objective.kind mavil")

    def weights(self) -> dict[str, float]:
        """See `MavilConfig.weights`."""
        return {"context_weight": self.context_weight} | super().weights()

    @property
    def decodes(self) -> bool:
        """Whether anything is decoded: always."""
        return True

    def check(self, model: ModelConfig) -> None:
        """See `ObjectiveConfig.check`."""
        super().check(model)
        if not self.teacher:
            raise ValueError(
                "objective.teacher is not given: name the run, checkpoint or file of the first stage"
            )


class MavilSelfTraining(Mavil):
    """MAViL's second stage on a `MavilMAE`.

    Args:
        model: The student.
        fbank: The spectrogram's settings, the teacher's too.
        config: The losses' settings.
    """

    config: MavilSelfTrainingConfig
    teacher_sha256: Tensor

    def __init__(self, model: MavilMAE, fbank: FbankConfig, config: MavilSelfTrainingConfig) -> None:
        super().__init__(model, fbank, config)
        self._teacher = FrozenTeacher(config.teacher, self._check_teacher)
        self.register_buffer("teacher_sha256", torch.zeros(32, dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_check_hash)

    def keep_in(self, run: Path, resumed: bool, world: World) -> None:
        """See `Objective.keep_in`: the teacher's weights."""
        self._teacher.keep_in(run, resumed, world)
        self.teacher_sha256.copy_(torch.tensor(list(bytes.fromhex(self._teacher.sha256)), dtype=torch.uint8))
        if self.config.start_from_teacher and not resumed:
            teacher = self._teacher.encoder(torch.device("cpu"))
            self.model.encoder.load_state_dict(teacher.state_dict())

    @property
    def predicts_features(self) -> bool:
        """See `Mavil.predicts_features`."""
        return True

    def prediction_losses(self, view: MavilView, fbank: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """See `Mavil.prediction_losses`: on the teacher's features, and on raw patches where these have a weight."""
        losses = super().prediction_losses(view, fbank, frames)
        targets, masks = self.targets(fbank, frames), (view.audio.mask, view.visual.mask)
        found = zip(("audio", "visual"), self.predicted_features(view), targets, masks, strict=True)
        return losses | {f"loss_context_{name}": self._context(*values) for name, *values in found}

    def predicted_features(self, view: MavilView) -> tuple[Tensor, Tensor]:
        """(B, La, D) and (B, Lv, D) of a decoded view."""
        decoder = self.model.decoder
        return (
            decoder.audio.pred_features(view.decoded_audio),
            decoder.visual.pred_features(view.decoded_visual),
        )

    @torch.no_grad()
    def targets(self, fbank: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(B, La, D) and (B, Lv, D) float32: the teacher's fusion outputs of the whole clip, without CLS tokens."""
        teacher: Any = self._teacher.encoder(fbank.device)
        fused = teacher(fbank, frames)
        audio, visual = fused.audio[:, 1:].float(), fused.visual[:, 1:].float()
        if self.config.normalize_targets:
            audio, visual = (F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in (audio, visual))
        return audio, visual

    def pictures(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `PretrainingObjective.pictures`: the teacher's features and the student's, as colours."""
        config, (fbank, frames) = self.model.config, self.inputs(batch)
        view = self.view(fbank, frames, batch.seeds, 0, decode=True)
        masks = view.audio.mask, view.visual.mask
        shown = tuple(map(torch.ones_like, masks)) if self.config.predict_kept else masks
        found = zip(self.targets(fbank, frames), self.predicted_features(view), shown, strict=True)
        sounds, films = (feature_colours(target, pred.float(), mask) for target, pred, mask in found)
        heard = [colours_of_spectrogram(x, config.audio_cells, config.patch_size) for x in sounds]
        seen = [colours_of_film(x, config.visual_cells, config.tubelet, config.patch_size) for x in films]
        return super().pictures(batch) | {
            "features/frames": film_rows([self.visual_front_end.invert(frames), *seen]),
            "features/spectrograms": grid([own_colours(fbank), *heard], ["input", "teacher", "student"]),
        }

    def _context(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """``mean (pred - target)²`` over removed tokens, or over all of them with ``predict_kept``."""
        counted = torch.ones_like(mask) if self.config.predict_kept else mask
        return reconstruction_loss(pred, target, counted, norm_pix=False)

    def loss_weights(self) -> dict[str, float]:
        """See `Mavil.loss_weights`."""
        weight = self.config.context_weight
        return {"loss_context_audio": weight, "loss_context_visual": weight} | super().loss_weights()

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`: the teacher's forward pass is counted too, of a teacher like its student."""
        found, config = super().workload(bf16), self.model.config
        tokens = config.num_audio_tokens, config.num_visual_tokens
        flops = tower_flops(config, *tokens) + fusion_flops(config, *tokens)
        return Workload(found.flops + flops, found.activations)

    def _check_teacher(self, theirs: ModelConfig, fbank: FbankConfig | None) -> None:
        ours = self.model.config
        if not isinstance(theirs, MavilModelConfig):
            raise ValueError(f"it holds a {theirs.name}; a teacher must be a MAViL, as its student is")
        for name in _SHARED:
            if getattr(theirs, name) != getattr(ours, name):
                raise ValueError(
                    f"its {name} is {getattr(theirs, name)} and the student's {getattr(ours, name)}; they must be equal"
                )
        if fbank is not None and fbank != self.audio_front_end.config:
            raise ValueError(
                f"it heard {fbank}, and this run gives {self.audio_front_end.config}; set fbank alike"
            )
        if self.config.start_from_teacher:
            same = ("encoder_heads", "bottleneck_tokens", "mlp_ratio")
            depths = theirs.architecture.depth, theirs.architecture.fusion_depth
            if depths != (ours.architecture.depth, ours.architecture.fusion_depth) or any(
                getattr(theirs, name) != getattr(ours, name) for name in same
            ):
                raise ValueError(
                    f"objective.start_from_teacher needs a student like it: {theirs.summary}, not {ours.summary}"
                )


def _check_hash(objective: MavilSelfTraining, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Refuses a checkpoint of a run with another teacher."""
    saved, own = state.get(f"{prefix}teacher_sha256"), objective.teacher_sha256
    if saved is not None and saved.tolist() != own.tolist():
        was, now = (bytes(value.tolist()).hex()[:12] for value in (saved, own))
        raise ValueError(
            f"the run's teacher has changed: the checkpoint was made with the encoder of hash {was}…, and "
            f"objective.teacher or the run's folder teacher/ holds that of {now}…"
        )


register_objective(
    ObjectiveKind(
        "mavil_self_training",
        MavilSelfTrainingConfig,
        MavilSelfTraining,
        ("mavil",),
        default_model="mavil_base",
    )
)
