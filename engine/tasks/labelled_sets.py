"""Labelled sets of shards: their vocabularies, and what is wrong with them before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from datasets.loading.frames import EvenFrames, all_frames, middle_frame, random_frame
from datasets.loading.joined import common_labels
from datasets.loading.loader import open_store
from datasets.loading.sampling import class_counts, subset_rows
from datasets.shards.manifest import ShardIndex
from datasets.shards.names import public
from datasets.shards.table import ClipTable
from engine.objectives.classification import LossName
from engine.parallel.world import World
from engine.records.runlog import logger
from engine.tasks.clips import held_out_clips
from engine.tasks.finetune_config import FinetuneConfig, LabelledConfig


@dataclass(frozen=True)
class LabelledSet:
    """A set with labels.

    Attributes:
        location: Its folder or URL.
        index: Its index.
        table: Its table.
    """

    location: str
    index: ShardIndex
    table: ClipTable

    @property
    def shown(self) -> str:
        """The location as it may be written into logs and reports."""
        return public(self.location)

    @property
    def classes(self) -> list[str]:
        """Names of the vocabulary, in order."""
        return [label.name for label in self.index.labels]


def open_labelled(config: LabelledConfig, location: str) -> LabelledSet:
    """Opens a set and makes sure that it has labels.

    Raises:
        ValueError: It has no vocabulary, or no clip of it has a label.
        ShardError: The set is missing or damaged.
    """
    index, table = open_store(config.data, location).open_index()
    if not index.labels or not len(table.label_ids):
        raise ValueError(
            f"{public(location)} has no labels: prepare it with `python -m datasets.prepare VIDEOS OUT --labels FILE`"
        )
    return LabelledSet(location, index, table)


def open_training_sets(config: LabelledConfig) -> list[LabelledSet]:
    """Opens the training sets. They have one vocabulary, so the first one stands for all where classes are asked for.

    Raises:
        ValueError: One has no labels, or two have different classes.
        ShardError: One is missing or damaged.
    """
    sets = [open_labelled(config, part.path) for part in config.data.train_sets]
    common_labels([train.location for train in sets], [train.index for train in sets])
    return sets


def check_training_labels(config: FinetuneConfig, sets: Sequence[LabelledSet]) -> None:
    """Makes sure that the loss fits the labels; the log tells of classes without a clip and clips without a class.

    Raises:
        ValueError: Cross-entropy on clips with several labels or none.
    """
    counts = sum(_check_labels(config, train) for train in sets)
    assert isinstance(counts, np.ndarray)
    train = sets[0]
    empty = [name for name, count in zip(train.classes, counts.tolist(), strict=True) if not count]
    if empty:
        logger.warning("no training clip has %d of %d classes: %s", len(empty), len(counts), _some(empty))


def _check_labels(config: FinetuneConfig, train: LabelledSet) -> NDArray[np.int64]:
    """(classes,) clips of each class in one of the sets."""
    rows = subset_rows(train.table, config.sampling.max_clips, config.seed)
    per_clip = np.diff(train.table.label_offsets.astype(np.int64))
    unlabelled = int((per_clip[rows] == 0).sum())
    if config.sampling.balanced and unlabelled:
        logger.warning(
            "%d of %d training clips have no label: sampling.balanced never draws them", unlabelled, len(rows)
        )
    if config.objective.loss is LossName.cross_entropy:
        wrong = rows[per_clip[rows] != 1]
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"objective.loss cross_entropy needs one label a clip, but {len(wrong)} clips of "
                f"{train.shown} have several or none, such as {train.table.id(row)!r} with "
                f"{per_clip[row]}; use objective.loss bce"
            )
    return class_counts(train.table, rows)


def check_held_out(config: LabelledConfig, train: LabelledSet) -> None:
    """Makes sure, before anything is trained, that the sets to evaluate on can be.

    Raises:
        ValueError: A set has no labels or classes that ``train`` lacks; or features of sound and picture are
            wanted of a set without one of them.
        ShardError: A set is missing or damaged.
    """
    for location in dict.fromkeys(filter(None, (config.data.val, config.evaluation_shards))):
        class_places(train, open_labelled(config, location))
    if config.evaluation.frozen_features and config.evaluation_shards is not None:
        for other in (train, open_labelled(config, config.evaluation_shards)):
            if not (other.table.num_with_audio and other.table.num_with_frames):
                raise ValueError(
                    f"evaluation.frozen_features needs sound and frames, and {other.shown} lacks one of them"
                )


def class_places(train: LabelledSet, other: LabelledSet) -> list[int]:
    """For each class of ``other``, its place in the vocabulary of ``train``.

    Raises:
        ValueError: ``train`` does not know a class.
    """
    places = {name: place for place, name in enumerate(train.classes)}
    unknown = [name for name in other.classes if name not in places]
    if unknown:
        raise ValueError(
            f"{other.shown} has classes that the vocabulary of {train.shown} lacks: {_some(unknown)}"
        )
    return [places[name] for name in other.classes]


def _some(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")


class Relabelled:
    """The batches of a loader with labels in another vocabulary; can be iterated again and again.

    Args:
        loader: What to read.
        places: For each class of the loader's, its place in the other vocabulary.
        num_classes: Size of the other vocabulary.
    """

    def __init__(self, loader: Iterable[AVBatch], places: list[int], num_classes: int) -> None:
        self.loader, self.num_classes = loader, num_classes
        self.places = torch.tensor(places)

    def __iter__(self) -> Iterator[AVBatch]:
        for batch in self.loader:
            yield replace(batch, labels=self._move(batch.labels))

    def _move(self, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        return labels.new_zeros(len(labels), self.num_classes).index_copy_(1, self.places, labels)


def clip_needs(config: FinetuneConfig, *, every_frame: bool = False, probe: bool = False) -> ClipNeeds:
    """What a fine-tuning run reads of a clip.

    Args:
        config: The run.
        every_frame: In evaluation all stored frames instead of the middle one.
        probe: Sound and frames, whatever the classifier uses.
    """
    audio, visual = (True, True) if probe else (config.objective.audio, config.objective.visual)
    one_at_a_time = config.model.num_frames == 1
    training, held_out = random_frame, all_frames if every_frame else middle_frame
    several = EvenFrames(config.model.num_frames)
    return ClipNeeds(
        audio=audio,
        train_frames=(training if one_at_a_time else several) if visual else None,
        held_out_frames=(held_out if one_at_a_time else several) if visual else None,
        image_size=config.model.image_size,
        num_samples=config.fbank.num_samples,
    )


def held_out_loader(
    config: FinetuneConfig,
    train: LabelledSet,
    location: str,
    world: World,
    *,
    every_frame: bool,
    probe: bool = False,
    chosen: NDArray[np.int64] | None = None,
) -> Relabelled:
    """This rank's whole batches of a set, labels in the vocabulary of ``train``.

    Args:
        config: The run.
        train: The training set.
        location: The set to read.
        world: The processes.
        every_frame: As of `clip_needs`.
        probe: As of `clip_needs`.
        chosen: The rows to read; None for all.
    """
    needs = clip_needs(config, every_frame=every_frame, probe=probe)
    return labelled_loader(config, train, location, world, needs, chosen)


def labelled_loader(
    config: LabelledConfig,
    train: LabelledSet,
    location: str,
    world: World,
    needs: ClipNeeds,
    chosen: NDArray[np.int64] | None = None,
) -> Relabelled:
    """This rank's whole batches of a set, labels in the vocabulary of ``train``.

    Args:
        config: The run.
        train: The training set.
        location: The set to read.
        world: The processes.
        needs: What is read of a clip.
        chosen: The rows to read; None for all.
    """
    other = open_labelled(config, location)
    loader = held_out_clips(config, world, needs, location, config.evaluation.batch_size, chosen)
    return Relabelled(loader, class_places(train, other), len(train.classes))
