"""Metrics against scikit-learn, with ties, constants and classes that nobody has."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from engine.evaluation.scores import (
    bootstrap,
    class_scores,
    confusion_matrix,
    d_prime,
    summary_scores,
    top_k,
    weighted_average_precision,
)


def multi_label(clips: int = 60, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with ties that know something of the labels; class 3 has no positive clip."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(clips, classes, generator=generator) < 0.2).float()
    labels[:, 3] = 0
    scores = ((labels + 1.5 * torch.rand(clips, classes, generator=generator)) * 8).round() / 20
    return scores, labels


def single_label(clips: int = 40, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.eye(classes)[torch.randint(classes, (clips,), generator=generator)]
    return (labels + 1.2 * torch.rand(clips, classes, generator=generator)) / 3, labels


def test_equal_to_scikit_learn():
    scores, labels = multi_label()
    each = class_scores(scores, labels)
    kept = [c for c in range(labels.shape[1]) if c != 3]
    for c in kept:
        ap = average_precision_score(labels[:, c], scores[:, c])
        assert each.average_precision[c].item() == pytest.approx(ap, abs=1e-6)
        assert each.auc[c].item() == pytest.approx(roc_auc_score(labels[:, c], scores[:, c]), abs=1e-6)
    assert each.average_precision[3].isnan()
    assert each.auc[3].isnan()
    assert each.positives[3] == 0
    values = summary_scores(scores, labels)
    assert values["mAP"] == pytest.approx(each.average_precision[kept].mean().item())
    assert values["d_prime"] == pytest.approx(math.sqrt(2) * stats.norm.ppf(values["mAUC"]))
    assert "top1" not in values


def test_scores_may_be_of_any_range():
    scores, labels = multi_label()
    for other in (scores * 40 - 20, scores.double().exp()):
        moved = class_scores(other, labels)
        torch.testing.assert_close(
            moved.average_precision, class_scores(scores, labels).average_precision, equal_nan=True
        )


def test_top_k_counts_ties_as_chance():
    scores, labels = single_label()
    naive = [labels[i].argmax().item() in scores[i].topk(3).indices.tolist() for i in range(len(scores))]
    assert top_k(scores, labels, 3).mean().item() == pytest.approx(np.mean(naive))
    constant = torch.full_like(scores, 0.3)
    assert top_k(constant, labels, 1).mean().item() == pytest.approx(1 / 6)
    values = summary_scores(constant, labels)
    assert values["top5"] == pytest.approx(5 / 6)
    assert values["mAUC"] == pytest.approx(0.5)
    assert values["mAP"] == pytest.approx((labels.mean(0)[labels.sum(0) > 0]).mean().item())
    assert values["d_prime"] == pytest.approx(0, abs=1e-6)


def test_weighted_average_precision_is_scikit_learns():
    scores, labels = multi_label()
    weights = torch.randint(0, 4, (5, len(scores)), generator=torch.Generator().manual_seed(2)).float()
    found = weighted_average_precision(scores[:, 0], labels[:, 0], weights.T)
    expected = [average_precision_score(labels[:, 0], scores[:, 0], sample_weight=w) for w in weights.numpy()]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    plain = weighted_average_precision(scores[:, 0], labels[:, 0], torch.ones(len(scores), 1))
    assert plain.item() == pytest.approx(average_precision_score(labels[:, 0], scores[:, 0]), abs=1e-6)


def test_bootstrap_intervals():
    scores, labels = single_label(200)
    intervals = bootstrap(scores, labels, 400)
    accuracy = top_k(scores, labels, 1).mean().item()
    low, high = intervals["top1"]
    assert low < accuracy < high
    # The normal approximation of the binomial.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / 200), rel=0.15)
    low, high = intervals["mAP"]
    assert low < summary_scores(scores, labels)["mAP"] < high
    assert bootstrap(scores, labels, 400) == intervals
    assert bootstrap(scores, labels, 0) == {}
    assert list(bootstrap(*multi_label(), 10)) == ["mAP"]


def test_confusion_matrix():
    scores, labels = single_label()
    matrix = confusion_matrix(scores, labels)
    assert matrix.sum() == len(scores)
    assert matrix.diagonal().sum() / len(scores) == pytest.approx(top_k(scores, labels, 1).mean().item())
    assert torch.equal(matrix.sum(1), labels.sum(0).long())


def test_what_can_not_be_measured():
    scores, labels = multi_label()
    with pytest.raises(ValueError, match="no clip of the evaluated set has a label"):
        class_scores(scores, torch.zeros_like(labels))
    scores[3, 2] = math.nan
    with pytest.raises(ValueError, match="scores are not finite"):
        class_scores(scores, labels)
    assert d_prime(1.0) == math.inf
    assert math.isnan(d_prime(math.nan))
