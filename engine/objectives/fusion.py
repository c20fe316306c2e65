"""Fusion of sound, frames and text with one head or several (seeds of MELD's kind: emotion and sentiment).

::

    loss = Σ_head weight · 1/B Σ_clip Σ_opinion share · w_class · CE(logits, smoothed label)

over the clips that have a label of the head; an opinion is what the fusion trains (`models.fusion.joining`). The sum is
divided by B and not by what is labelled, so that the gradient of two ranks is that of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from datasets.loading.frames import EvenFrames, middle_frame, random_frame
from datasets.shards.manifest import Label, label_tasks
from engine.objectives.base import LrGroup, Objective, ObjectiveConfig, detached, first_step
from models import AudioFrontEnd, FbankConfig, VisualFrontEnd, Workload
from models.fusion import FusionInputs, FusionModel, HeadShape, Opinion, num_frames
from models.sample_random import Stream, uniform
from models.towers import Sound
from models.towers.base import first

#: Columns of predictions beside the heads.
_COLUMNS = ("id", "start", "end", "text")


@dataclass(frozen=True)
class HeadConfig:
    """A head and its loss.

    Attributes:
        task: Its classes are those of the vocabulary that begin with ``TASK:``; null is the whole vocabulary.
        loss: ``cross_entropy`` for one class a clip, ``bce`` for several.
        balanced: Classes weigh the more, the fewer training clips they have: ``n / (C · n_class)``, 1 in the mean.
        label_smoothing: Share of a label spread over all classes.
        weight: Of its loss in the sum.
    """

    task: str | None = None
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    balanced: bool = False
    label_smoothing: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"objective.heads: label_smoothing is {self.label_smoothing}: it must lie in [0, 1)"
            )
        if self.weight <= 0:
            raise ValueError(f"objective.heads: weight is {self.weight}: it must be above 0")
        if self.task is not None and (not self.task or "." in self.task or ":" in self.task):
            raise ValueError(
                f"objective.heads: task is {self.task!r}: it must be a word without a dot or colon"
            )
        if self.task in _COLUMNS:
            raise ValueError(
                f"objective.heads: task is {self.task!r}, which is also a column of the predictions "
                f"({', '.join(_COLUMNS)}): prepare the set with another name for it (label.NAME)"
            )
        if self.loss not in ("cross_entropy", "bce"):
            raise ValueError(f"objective.heads: loss is {self.loss!r}: it must be cross_entropy or bce")

    @property
    def name(self) -> str:
        """What it is called in metrics and predictions."""
        return self.task or "classes"


@dataclass(frozen=True)
class TowerRates:
    """When and how fast a tower learns.

    Attributes:
        lr_ratio: Its peak rate over that of the fusion and the heads.
        from_epoch: It is frozen until this epoch (may be a fraction); then its schedule begins.
    """

    lr_ratio: float = 1.0
    from_epoch: float = 0.0

    def __post_init__(self) -> None:
        if self.lr_ratio <= 0 or self.from_epoch < 0:
            raise ValueError("a tower's lr_ratio must be above 0, its from_epoch 0 or more")


@dataclass(frozen=True)
class FusionConfig(ObjectiveConfig):
    """Heads, and how the towers are trained.

    Attributes:
        kind: ``fusion``.
        heads: The heads; none given is one for each task of the vocabulary, or one for all where it has no tasks.
        modality_dropout: Share of the modalities that are dropped of a clip in training; one always stays.
        audio: When and how fast the tower for sound learns.
        visual: Likewise.
        text: Likewise.
    """

    kind: str = "fusion"
    heads: tuple[HeadConfig, ...] = ()
    modality_dropout: float = 0.0
    audio: TowerRates = field(default_factory=TowerRates)
    visual: TowerRates = field(default_factory=TowerRates)
    text: TowerRates = field(default_factory=TowerRates)

    def __post_init__(self) -> None:
        if self.kind != "fusion":
            raise ValueError(f"objective.kind is {self.kind!r}: these settings are those of fusion")
        if not 0 <= self.modality_dropout < 1:
            raise ValueError(f"objective.modality_dropout is {self.modality_dropout}: it must lie in [0, 1)")
        names = [head.name for head in self.heads]
        if len(set(names)) < len(names):
            raise ValueError("objective.heads names one task twice")

    def rates(self, modality: str) -> TowerRates:
        """Those of a modality's tower."""
        return getattr(self, modality)


@dataclass(frozen=True)
class Head:
    """A head on a vocabulary.

    Attributes:
        config: Its settings.
        classes: Its classes' names, without the task.
        columns: Their places in the vocabulary.
        weights: (C,) what a class weighs in the loss; None for 1.
    """

    config: HeadConfig
    classes: tuple[str, ...]
    columns: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    @property
    def shape(self) -> HeadShape:
        """What the model needs to know."""
        return HeadShape(len(self.classes), self.config.loss == "bce")


def heads_of(config: FusionConfig, vocabulary: Sequence[str]) -> dict[str, Head]:
    """The heads by name.

    Args:
        config: The objective's.
        vocabulary: Names of the classes, such as ``emotion:neutral``.

    Raises:
        ValueError: A task has fewer than two classes.
    """
    wanted = config.heads or tuple(HeadConfig(task) for task in _tasks(vocabulary))
    heads = {}
    for head in wanted:
        prefix = "" if head.task is None else f"{head.task}:"
        places = tuple(i for i, name in enumerate(vocabulary) if name.startswith(prefix))
        if len(places) < 2 and head.loss == "cross_entropy":
            tasks = ", ".join(str(task) for task in _tasks(vocabulary) if task) or "no tasks"
            raise ValueError(
                f"objective.heads: task {head.task!r} has {len(places)} classes in the training set; it has {tasks}"
            )
        heads[head.name] = Head(head, tuple(vocabulary[i].removeprefix(prefix) for i in places), places)
    return heads


def _tasks(vocabulary: Sequence[str]) -> list[str | None]:
    """The tasks of a vocabulary in order; None, the whole, where a name has none."""
    tasks = label_tasks([Label(name) for name in vocabulary])
    return [None] if "" in tasks else list(tasks)


class FusionObjective(Objective[FusionModel]):
    """A fusion model and the losses of its heads.

    Args:
        model: With heads of these names.
        fbank: The spectrogram's settings.
        config: The losses' settings.
        heads: From `heads_of`.
    """

    def __init__(
        self, model: FusionModel, fbank: FbankConfig, config: FusionConfig, heads: Mapping[str, Head]
    ) -> None:
        super().__init__()
        self.kind, self.model, self.config, self.heads = config.kind, model, config, dict(heads)
        self.audio_front_end, self.visual_front_end = AudioFrontEnd(fbank), VisualFrontEnd()
        self.modalities = model.config.present
        self._frozen: tuple[str, ...] = ()
        model.freeze_unused(fbank.num_samples, self.num_frames)

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return num_frames(self.model.config, self.model.visual_tower) if "visual" in self.modalities else 1

    def needs(self) -> ClipNeeds:
        """What is read of a clip; it may lack some of it."""
        visual, several = "visual" in self.modalities, self.num_frames > 1
        training, held_out = (EvenFrames(self.num_frames),) * 2 if several else (random_frame, middle_frame)
        return ClipNeeds(
            audio="audio" in self.modalities,
            train_frames=training if visual else None,
            held_out_frames=held_out if visual else None,
            image_size=self.model.config.image_size,
            num_samples=self.audio_front_end.config.num_samples,
            text="text" in self.modalities,
            partial=True,
        )

    def before_step(self, step: int, steps_per_epoch: float) -> None:
        """See `Objective.before_step`: which towers are frozen."""
        begin = {m: first_step(self.config.rates(m).from_epoch, steps_per_epoch) for m in self.modalities}
        self._frozen = tuple(m for m in self.modalities if step < begin[m])

    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """See `Objective.forward`; B labelled clips."""
        assert batch.labels is not None
        inputs = self.inputs(batch)
        if self.training and self.config.modality_dropout:
            inputs = self._dropped(inputs, batch.seeds)
        fused = self.model(inputs, self._frozen)
        values: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.labels.device)
        for name, head in self.heads.items():
            labels = batch.labels.index_select(1, _sent(head.columns, batch.labels.device))
            loss = head_loss(head, fused.opinions[name], labels)
            total = total + head.config.weight * loss
            labelled = labels.sum(1) > 0
            hit = labels.gather(1, fused.probabilities[name].argmax(1, keepdim=True))[:, 0] > 0
            values[f"loss_{name}"] = loss
            values[f"accuracy_{name}"] = hit.sum() / labelled.sum().clamp_min(1)
        return detached({"loss": total, **values})

    @torch.no_grad()
    def inputs(self, batch: AVBatch) -> FusionInputs:
        """What the towers take; zeros where a clip has nothing, whatever the batch holds there."""
        present, device = self.present(batch), batch.rows.device
        sound = pictures = words = None
        if "audio" in self.modalities:
            assert batch.waveform is not None
            assert batch.num_samples is not None
            waveform = batch.waveform * first(batch.num_samples, batch.waveform.shape[1])
            sound = Sound.of(self.audio_front_end, waveform, batch.num_samples)
        if "visual" in self.modalities:
            assert batch.frames is not None
            pictures = self.visual_front_end(batch.frames) * present["visual"][:, None, None, None, None]
        if "text" in self.modalities:
            assert batch.text is not None
            found = self.model.tokenize(batch.text)
            words = type(found)(*(x.to(device, non_blocking=True) for x in (found.ids, found.mask)))
        return FusionInputs(sound, pictures, words, present)

    def present(self, batch: AVBatch) -> dict[str, Tensor]:
        """By modality (B,) bool, which clips have it."""
        device = batch.rows.device
        everyone = torch.ones(len(batch), dtype=torch.bool, device=device)
        texts = batch.text or [None] * len(batch)
        found = {
            "audio": everyone if batch.num_samples is None else batch.num_samples > 0,
            "visual": everyone if batch.num_stored is None else batch.num_stored > 0,
            "text": _sent([bool(text and text.strip()) for text in texts], device),
        }
        return {name: found[name] for name in self.modalities}

    def _dropped(self, inputs: FusionInputs, seeds: Tensor) -> FusionInputs:
        """Some modalities of each clip taken away: those whose draw is low, but for the highest of those present."""
        draws = uniform(seeds, Stream.MODALITY_DROPOUT, (len(self.modalities),))
        there = torch.stack([inputs.present[m] for m in self.modalities], 1)
        best = F.one_hot(draws.masked_fill(~there, -1.0).argmax(1), len(self.modalities)).bool()
        kept = there & ((draws >= self.config.modality_dropout) | best)
        present = {m: kept[:, i] for i, m in enumerate(self.modalities)}
        return FusionInputs(inputs.sound, inputs.pictures, inputs.words, present)

    def no_weight_decay(self) -> set[str]:
        """See `Objective.no_weight_decay`."""
        return self.model.no_weight_decay()

    def lr_groups(self) -> dict[str, LrGroup]:
        """See `Objective.lr_groups`: the towers' own peak rates, from the epoch at which they are unfrozen."""
        groups = {}
        for name, _ in self.model.towers.named_parameters(prefix="towers"):
            modality = name.split(".")[1]
            rates = self.config.rates(modality)
            groups[name] = LrGroup(f"{modality}_tower", rates.lr_ratio, rates.from_epoch)
        return groups

    def workload(self, bf16: bool) -> Workload:
        """See `Objective.workload`."""
        return self.model.workload(self.audio_front_end.config.num_samples, self.num_frames, bf16)


def head_loss(head: Head, opinions: Sequence[Opinion], labels: Tensor) -> Tensor:
    """The loss of a head: () float32; see the module.

    Args:
        head: Its settings and classes.
        opinions: What is trained.
        labels: (B, C) 0 or 1; a clip without any is left out.
    """
    smoothing = head.config.label_smoothing
    targets = labels * (1 - smoothing) + smoothing / labels.shape[1]
    share = (labels.sum(1) > 0).float()
    if head.weights is not None:
        weights = _sent(head.weights, labels.device)
        share = share * (labels * weights).sum(1) / labels.sum(1).clamp_min(1)
    total = labels.new_zeros(())
    for opinion in opinions:
        if head.config.loss == "bce":
            each = F.binary_cross_entropy_with_logits(opinion.logits, targets, reduction="none").mean(1)
        else:
            each = F.cross_entropy(opinion.logits, targets, reduction="none")
        total = total + (share * opinion.weight * each).mean()
    return total


def _sent(values: Sequence[float], device: torch.device) -> Tensor:
    """Values of the host as a tensor on a device, for which nobody waits."""
    return torch.tensor(values).to(device, non_blocking=True)
