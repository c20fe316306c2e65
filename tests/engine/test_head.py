"""A head that begins as a linear probe."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from support.finetuning import small_config
from support.processes import run_ranks
from support.shards import make_shards

from datasets.batch import TooManyFailuresError
from engine.evaluation.probes import ProbeConfig
from engine.objectives.classification import LossName, Modalities
from engine.parallel.world import World
from engine.tasks.classifier_task import build_classification
from engine.tasks.finetune_config import EvaluationConfig
from engine.tasks.labelled_sets import open_labelled
from engine.tasks.probe_head import fit_head

ALONE = World(0, 1, torch.device("cpu"))


def test_the_head_is_a_logistic_regression_of_the_clips_in_use(tmp_path: Path):
    """As scikit-learn fits it to balanced draws; the same from one process and two; and where training begins."""
    shards = make_shards(tmp_path / "shards", 23, 9, seconds=0.35, frames=3)
    fit = "support.finetuning:fitted_head"
    (alone,) = run_ranks(fit, 1, shards=str(shards), run=str(tmp_path / "alone"))
    rows = alone["rows"]
    assert len(rows) == 15
    features, labels = alone["features"].numpy(), alone["labels"].argmax(1).numpy()
    assert len(features) == 23
    mean, std = features[rows].mean(0), features[rows].std(0, ddof=1)
    # scikit-learn's penalty is 1 / (2 C) for the sum of the losses; ours is 0.01 / 2 for their mean.
    reference = LogisticRegression(C=1 / (0.01 * 15), tol=1e-8, max_iter=5000)
    drawn = 1 / np.bincount(labels[rows])[labels[rows]]
    assert len(set(drawn)) > 1
    reference.fit((features[rows] - mean) / std, labels[rows], sample_weight=drawn / drawn.mean())
    expected = reference.predict_proba((features - mean) / std)
    found = F.linear(alone["features"], alone["weight"], alone["bias"]).softmax(1)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    # Adam's first step is of the rate's size: 50 times 0.001.
    assert 0 < (alone["after_a_step"] - alone["weight"]).abs().max() < 0.051
    both = run_ranks(fit, 2, shards=str(shards), run=str(tmp_path / "two"))
    assert torch.equal(both[0]["features"], alone["features"])
    assert both[1]["features"] is None  # rank 0 alone holds them
    for rank in both:
        assert torch.equal(rank["weight"], alone["weight"])
        assert torch.equal(rank["bias"], alone["bias"])


@pytest.mark.parametrize(
    ("loss", "balanced", "difference"),
    [
        ("cross_entropy", False, math.log(2)),
        ("bce", False, math.log(3)),  # of 2 in 4 and of 1 in 4
        ("cross_entropy", True, 0.0),
        ("bce", True, 0.0),
    ],
)
def test_the_head_fits_the_loss_and_the_draws_of_training(
    tmp_path: Path, loss: str, balanced: bool, difference: float
):
    """Four clips, one a class but two of the first: with weights held at 0 the biases are the classes' log odds."""
    shards = make_shards(tmp_path, 4, 4, seconds=0.35, frames=1)
    config = small_config(str(shards), "unused", sampling={"balanced": balanced}, loss=LossName(loss))
    config = replace(config, evaluation=EvaluationConfig(probe=ProbeConfig(weight_decay=1e4)))
    train = open_labelled(config, str(shards))
    objective = build_classification(config, train)
    fit_head(config, objective, train, ALONE)
    first, second, third = objective.model.head.bias.tolist()
    assert second == pytest.approx(third, abs=0.01)
    assert first - second == pytest.approx(difference, abs=0.01)


def test_clips_that_can_not_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Named and left out; too many of them are an error."""
    shards = make_shards(tmp_path, 9, 9, seconds=0.35, frames=1)
    config = small_config(str(shards), "unused", modalities=Modalities.audio)
    train = open_labelled(config, str(shards))
    with (shards / "shard-000000.tar").open("r+b") as file:
        file.seek(train.table.members(5)[train.table.audio_slots[0]].offset + 512)
        file.write(b"no FLAC!")
    objective = build_classification(config, train)
    with caplog.at_level("INFO", "earsight"):
        fit_head(config, objective, train, ALONE)
    assert "left out, can't be read: clip-00005 in " in caplog.text
    assert "head fitted to 8 training clips" in caplog.text
    strict = replace(config, data=replace(config.data, max_bad_fraction=0.0))
    with pytest.raises(TooManyFailuresError, match="1 of 9 clips could not be read"):
        fit_head(strict, objective, train, ALONE)


def test_two_beginnings_of_the_head_are_refused():
    with pytest.raises(ValueError, match="init_head and fit_head"):
        replace(small_config("shards", "unused"), init="run", init_head=True, fit_head=True)
