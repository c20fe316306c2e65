"""What a classifier says of every clip of a set: gathered from all ranks on rank 0, in the order of the set.

No collective runs while clips are read, so ranks may have different numbers of them. Ranks share whole
batches: a clip is computed beside the same neighbours in every world, and its numbers are the same to the
last bit (on one kind of device, with the same number of threads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.batch import AVBatch, ReadFailure
from datasets.loading.loader import DataConfig
from engine.evaluation.unreadable import gather_failures
from engine.objectives.classification import Classification, Modalities
from engine.parallel.world import World


@dataclass(frozen=True)
class Predictions:
    """Scores of a set, a row a clip in the set's order.

    Attributes:
        ids: N clip ids.
        rows: (N,) rows in the set's table.
        labels: (N, C) 0 or 1.
        scores: (N, C) probabilities by what was looked at: ``audio_visual``, ``audio``, ``visual`` with the
            middle frame, and with ``_ensemble`` the mean over all stored frames.
        failures: Clips that could not be read.
    """

    ids: list[str]
    rows: Tensor
    labels: Tensor
    scores: dict[str, Tensor]
    failures: list[ReadFailure]


def predict(
    objective: Classification,
    loader: Iterable[AVBatch],
    world: World,
    data: DataConfig,
    *,
    bf16: bool = False,
    missing: bool = True,
) -> Predictions | None:
    """Scores every clip once over all ranks; every rank calls it.

    Args:
        objective: In evaluation mode. Trained on both modalities, it is also given each alone if ``missing``.
        loader: This rank's batches with all frames that are to be averaged; labels of the model's classes.
        world: The processes.
        data: How many clips may be unreadable.
        bf16: Whether to compute in bfloat16.
        missing: Whether to measure a model of both modalities with one of them missing.

    Returns:
        The whole on rank 0, None on the others.

    Raises:
        TooManyFailuresError: More clips can't be read than ``data.max_bad_fraction`` allows.
        ValueError: No clip at all could be read.
    """
    return predict_with(lambda batch: batch_scores(objective, batch, missing), loader, world, data, bf16=bf16)


@torch.no_grad()
def predict_with(
    score: Callable[[AVBatch], dict[str, Tensor]],
    loader: Iterable[AVBatch],
    world: World,
    data: DataConfig,
    *,
    bf16: bool = False,
) -> Predictions | None:
    """The same with whatever scores a batch.

    Args:
        score: From a batch on the device: (B, C) by name, the same names for every batch.
        loader: As of `predict`.
        world: The processes.
        data: How many clips may be unreadable.
        bf16: Whether to compute in bfloat16.

    Returns:
        As of `predict`.

    Raises:
        TooManyFailuresError: As of `predict`.
        ValueError: As of `predict`.
    """
    parts: list[dict[str, np.ndarray]] = []
    ids: list[str] = []
    failures: list[ReadFailure] = []
    with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
        for batch in loader:
            failures += batch.failures
            if not len(batch):
                continue
            batch = batch.to(world.device)
            assert batch.labels is not None
            found = {"rows": batch.rows, "labels": batch.labels, **score(batch)}
            parts.append({name: value.cpu().numpy() for name, value in found.items()})
            ids += batch.ids
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    failures = gather_failures(failures, len(ids), world, data.max_bad_fraction)
    gathered = world.gather_to_main((ids, columns))
    if gathered is None:
        return None
    ids = [name for part in gathered for name in part[0]]
    filled = [part[1] for part in gathered if part[1]]
    columns = {name: np.concatenate([part[name] for part in filled]) for name in filled[0]}
    order = np.argsort(columns["rows"], kind="stable")
    tensors = {name: torch.from_numpy(value[order]) for name, value in columns.items()}
    rows, labels = tensors.pop("rows"), tensors.pop("labels")
    return Predictions([ids[i] for i in order.tolist()], rows, labels, tensors, failures)


def batch_scores(objective: Classification, batch: AVBatch, missing: bool) -> dict[str, Tensor]:
    """(B, C) probabilities of a batch, by what was looked at.

    Args:
        objective: The classifier.
        batch: With all frames over which to average; the single-frame results use the middle one.
        missing: Whether a model of both modalities is also given each alone.
    """
    both = objective.config.modalities is Modalities.audio_visual
    stored = 0 if batch.frames is None else batch.frames.shape[1]
    at_once = objective.model.config.num_frames
    views = [objective.frames(batch, first) for first in range(0, stored - at_once + 1, at_once)]
    fbank = objective.spectrograms(batch)

    def score(sound: Tensor | None, picture: Tensor | None) -> Tensor:
        return objective.probabilities(objective.logits(sound, picture))

    scores: dict[str, Tensor] = {}
    if fbank is not None and (not both or missing):
        scores["audio"] = score(fbank, None)
    looks: dict[str, Tensor | None] = {}
    if both and views and fbank is not None:
        looks["audio_visual"] = fbank
    if views and (not both or missing):
        looks["visual"] = None
    for name, sound in looks.items():
        each = [score(sound, view) for view in views]
        scores[name] = each[len(each) // 2]
        if len(each) > 1:
            scores[f"{name}_ensemble"] = torch.stack(each).mean(0)
    return scores
