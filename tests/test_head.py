"""A head that begins as a linear probe."""

from __future__ import annotations

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


def test_the_head_is_a_logistic_regression_of_the_clips_in_use(tmp_path: Path):
    """As scikit-learn fits it; the same from one process and from two; and where training begins."""
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
    reference.fit((features[rows] - mean) / std, labels[rows])
    expected = reference.predict_proba((features - mean) / std)
    found = F.linear(alone["features"], alone["weight"], alone["bias"]).softmax(1)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    # Adam's first step is of the rate's size: 50 times 0.001.
    assert 0 < (alone["after_a_step"] - alone["weight"]).abs().max() < 0.051
    for rank in run_ranks(fit, 2, shards=str(shards), run=str(tmp_path / "two")):
        assert torch.equal(rank["weight"], alone["weight"])
        assert torch.equal(rank["bias"], alone["bias"])


def test_two_beginnings_of_the_head_are_refused():
    with pytest.raises(ValueError, match="init_head and fit_head"):
        replace(small_config("shards", "unused"), init="run", init_head=True, fit_head=True)
