"""Nearest neighbours and the linear probe against naive versions and scikit-learn."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from engine.evaluation.features import Features
from engine.evaluation.probes import (
    ProbeConfig,
    cross_validated_probe,
    knn_scores,
    linear_scores,
    probe_features,
)

CLASSES = 4


def clips(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that tell the class with some noise, of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.eye(CLASSES)[torch.arange(count) % CLASSES]
    noise = torch.randn(count, 6, generator=generator)
    directions = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(9))
    return (labels @ directions + 0.7 * noise) * torch.tensor([1, 30, 0.01, 5, 1, 1]) + 3, labels


def test_neighbours_vote():
    (train, labels), (queries, _) = clips(30, 0), clips(7, 1)
    found = knn_scores(train, labels, queries, ProbeConfig(neighbours=5))
    similarity = F.normalize(queries, dim=1) @ F.normalize(train, dim=1).T
    for i in range(len(queries)):
        best = similarity[i].argsort(descending=True)[:5]
        votes = (similarity[i][best] / 0.07).exp()
        expected = (votes[:, None] * labels[best]).sum(0) / votes.sum()
        torch.testing.assert_close(found[i], expected)


def test_more_neighbours_than_clips():
    train, labels = clips(8, 0)
    assert knn_scores(train, labels, train, ProbeConfig(neighbours=50)).shape == (8, CLASSES)


def test_linear_probe_is_logistic_regression():
    (train, labels), (queries, _) = clips(60, 0), clips(20, 1)
    found = linear_scores(train, labels, queries, ProbeConfig(weight_decay=0.02))
    std, mean = torch.std_mean(train, dim=0)
    # scikit-learn's penalty is 1 / (2 C) for the sum of the losses.
    reference = LogisticRegression(C=1 / (0.02 * 60), tol=1e-8, max_iter=1000)
    reference.fit(((train - mean) / std).numpy(), labels.argmax(1).numpy())
    expected = torch.from_numpy(reference.predict_proba(((queries - mean) / std).numpy()))
    torch.testing.assert_close(found.softmax(1).double(), expected.double(), atol=2e-3, rtol=0)


def test_several_labels_are_fitted_each_for_itself():
    train, labels = clips(60, 0)
    labels[:, 1] = (train[:, 0] > train[:, 0].median()).float()
    scores = linear_scores(train, labels, train, ProbeConfig(weight_decay=1e-3))
    assert ((scores[:, 1] > 0) == (labels[:, 1] > 0)).float().mean() > 0.9


def test_a_single_clip_is_fitted():
    train, labels = clips(1, 0)
    scores = linear_scores(train, labels, train, ProbeConfig())
    assert scores.argmax() == labels.argmax()


def test_probes_of_every_stream():
    (train, labels), (queries, answers) = clips(60, 0), clips(40, 1)
    noise = torch.randn(100, 6, generator=torch.Generator().manual_seed(5))
    first = Features(["a"] * 60, torch.arange(60), labels, {"audio": train, "visual": noise[:60]})
    second = Features(["b"] * 40, torch.arange(40), answers, {"audio": queries, "visual": noise[60:]})
    values = probe_features(first, second, ProbeConfig())
    assert values["linear_audio_top1"] > 0.8
    assert values["knn_audio_top1"] > 0.5
    assert values["linear_visual_top1"] < 0.5
    with pytest.raises(ValueError, match="no labels"):
        probe_features(first, Features(["b"], torch.arange(1), None, {}), ProbeConfig())


def test_cross_validated_probe():
    train, labels = clips(60, 0)
    assert cross_validated_probe(train, labels, ProbeConfig())["top1"] > 0.8
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert cross_validated_probe(train, shuffled, ProbeConfig())["top1"] < 0.5
    labels[0, 1] = 1
    assert list(cross_validated_probe(train, labels, ProbeConfig())) == ["mAP"]


def test_settings_that_can_not_be():
    with pytest.raises(ValueError, match=r"probe.neighbours is 0"):
        ProbeConfig(neighbours=0)
    with pytest.raises(ValueError, match=r"probe.temperature"):
        ProbeConfig(temperature=0)
