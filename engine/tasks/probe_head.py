"""A head that begins as a linear probe (LP-FT, arXiv 2202.10054).

A head drawn at random sends noise into pretrained encoders until it has learned, and with few labels it has not
learned when training ends. Fitted first, it starts where a linear probe of the frozen features stands.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from datasets.loading.sampling import clip_weights, subset_rows
from engine.evaluation.features import embed_set
from engine.evaluation.probes import fit_linear
from engine.evaluation.scores import summary_scores
from engine.objectives.classification import Classification, LossName
from engine.parallel.world import World
from engine.records.runlog import logger
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.labelled_sets import LabelledSet, held_out_loader


def fit_head(config: FinetuneConfig, objective: Classification, train: LabelledSet, world: World) -> None:
    """Fits the head to the training clips in use, each once, without augmentation; every rank calls it.

    It minimises what training will: ``objective.loss``, with ``sampling.balanced`` over clips weighted as they will be
    drawn. Rank 0 alone holds the features of all clips and fits; the others are given the head.

    Args:
        config: The run.
        objective: On the world's device, with the encoders' weights.
        train: The training set.
        world: The processes. The head is the same for every number of them.

    Raises:
        TooManyFailuresError: More clips can't be read than ``data.max_bad_fraction`` allows.
    """
    rows = subset_rows(train.table, config.sampling.max_clips, config.seed)
    loader = held_out_loader(config, train, train.location, world, every_frame=False, chosen=rows)
    was_training = objective.training
    objective.eval()
    found = embed_set(
        lambda batch: {"head": objective.head_features(batch)},
        loader,
        world,
        config.data.max_bad_fraction,
        config.train.parallel.uses_bf16(world.device),
    )
    objective.train(was_training)
    fitted = None
    if found is not None:
        assert found.labels is not None
        features, labels = found.streams["head"].to(world.device), found.labels
        weights = None
        if config.sampling.balanced:
            drawn = clip_weights(train.table, rows)[np.searchsorted(rows, found.rows.numpy())]
            weights = torch.from_numpy(drawn / drawn.mean()).float().to(world.device)
        softmax = config.objective.loss is LossName.cross_entropy
        fitted = fit_linear(features, labels, config.evaluation.probe, softmax=softmax, weights=weights)
        scores = summary_scores(F.linear(features, *fitted).cpu(), labels)
        name = "top1" if "top1" in scores else "mAP"
        logger.info("head fitted to %d training clips (%s on them %.3f)", len(labels), name, scores[name])
        fitted = [value.cpu() for value in fitted]
    shared = world.from_main(lambda: fitted)
    assert shared is not None
    weight, bias = shared
    with torch.no_grad():
        objective.model.head.weight.copy_(weight)
        objective.model.head.bias.copy_(bias)
