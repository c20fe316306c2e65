"""Metrics against scikit-learn, with ties, constants and classes that nobody has."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from engine.evaluation.scores import (
    average_precision_influence,
    bootstrap,
    class_scores,
    confusion_matrix,
    d_prime,
    summary_scores,
    top_k,
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


def test_influence_is_what_the_class_loses_without_the_clip():
    scores, labels = multi_label()
    for c in (0, 1, 2):
        value, influence = average_precision_influence(scores[:, c], labels[:, c])
        whole = average_precision_score(labels[:, c], scores[:, c])
        assert value == pytest.approx(whole, abs=1e-12)
        others = [np.delete(np.arange(len(scores)), i) for i in range(len(scores))]
        lost = np.array([whole - average_precision_score(labels[o, c], scores[o, c]) for o in others])
        positive = labels[:, c].numpy() > 0
        mean, n = lost[positive].mean(), positive.sum()
        lost[positive] = mean + (lost[positive] - mean) * math.sqrt((n - 1) / n)
        np.testing.assert_allclose(influence.numpy(), lost, atol=1e-9)


def rare(classes: int, positives: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of 400 clips that know something of classes of so many positive clips each."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(400, generator=generator) for _ in range(classes)], 1)
    labels = (order < positives).float()
    ease = torch.linspace(1, 3, classes)
    return labels * ease + torch.randn(400, classes, generator=generator), labels


@pytest.mark.parametrize("positives", [1, 2, 4, 40])
def test_intervals_cover_what_they_say(positives: int):
    """Of 100 sets from one source: as good as always the own estimate, and about 95 % of them the source's mAP."""
    found = []
    for seed in range(100):
        scores, labels = rare(20 if positives < 40 else 3, positives, seed)
        low, high = bootstrap(scores, labels, 200)["mAP"]
        estimate = summary_scores(scores, labels)["mAP"]
        assert 0 <= low <= estimate <= high <= 1
        found.append((low, estimate, high))
    lows, estimates, highs = np.array(found).T
    truth = estimates.mean()
    assert np.mean((lows <= truth) & (truth <= highs)) > 0.88
    # And not by being wide: rarest classes overstate their scatter by half at most.
    assert np.mean(highs - lows) < 1.6 * 2 * 1.96 * estimates.std()


def test_nothing_is_known_of_the_scatter_of_a_single_positive():
    scores, labels = rare(1, 1, 0)
    assert bootstrap(scores, labels, 50) == {"mAP": (0.0, 1.0)}


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
