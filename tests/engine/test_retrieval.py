"""Retrieval: naive definitions, ties, constants, blocks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

import engine.evaluation.retrieval
from engine.evaluation.retrieval import class_retrieval_map, cross_modal_retrieval, nearest, retrieval_metrics


def embeddings(clips: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(clips, 8, generator=generator)
    visual = audio + torch.randn(clips, 8, generator=generator)
    labels = (torch.rand(clips, 4, generator=generator) < 0.3).float()
    return audio, visual, labels


def test_equal_to_the_definition():
    audio, visual, _ = embeddings()
    similarity = F.normalize(audio, dim=1) @ F.normalize(visual, dim=1).T
    rank = 1 + (similarity > similarity.diagonal()[:, None]).sum(1)
    values = retrieval_metrics(audio, visual)
    for k in (1, 5, 10):
        assert values[f"r{k}"] == pytest.approx((rank <= k).float().mean().item())
    assert values["median_rank"] == np.median(rank.numpy())


def test_median_rank_of_an_even_number_lies_between_the_middle_two():
    gallery = torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    assert retrieval_metrics(torch.eye(2), gallery)["median_rank"] == 1.5


def test_a_constant_embedding_scores_chance():
    _, _, labels = embeddings()
    constant = torch.full((50, 8), 0.7) + torch.tensor([0.1, 3.0, -2.0, 0, 0, 0.3, 0.9, 1e-3])
    values = cross_modal_retrieval(constant, constant * 1.7, labels)
    for k in (1, 5, 10):
        assert values[f"retrieval_a2v_r{k}"] == pytest.approx(k / 50)
        assert values[f"retrieval_chance_r{k}"] == k / 50
    assert values["retrieval_v2a_median_rank"] == 25.5
    relevant = (labels @ labels.T > 0).double()
    share = relevant[labels.any(1)].mean().item()
    assert values["retrieval_a2v_map"] == pytest.approx(share)
    assert values["retrieval_chance_map"] == pytest.approx(share)


def test_map_by_class_is_scikit_learns():
    audio, visual, labels = embeddings()
    similarity = F.normalize(audio, dim=1) @ F.normalize(visual, dim=1).T
    relevant = labels @ labels.T > 0
    expected = [
        average_precision_score(relevant[i], similarity[i]) for i in range(len(audio)) if relevant[i].any()
    ]
    assert class_retrieval_map(audio, visual, labels) == pytest.approx(
        sum(expected) / len(expected), abs=1e-5
    )


def test_blocks_change_nothing(monkeypatch):
    audio, visual, labels = embeddings()
    whole = cross_modal_retrieval(audio, visual, labels)
    monkeypatch.setattr(engine.evaluation.retrieval, "_BLOCK", 50 * 3)
    assert cross_modal_retrieval(audio, visual, labels) == pytest.approx(whole)


def test_nearest():
    audio, visual, _ = embeddings()
    similarity = F.normalize(audio[:3], dim=1) @ F.normalize(visual, dim=1).T
    assert torch.equal(nearest(audio[:3], visual, 5), similarity.topk(5, dim=1).indices)


def test_damaged_embeddings_score_nothing():
    audio, visual, labels = embeddings()
    broken = audio.clone()
    broken[4, 2] = math.nan
    for measure in (
        lambda: retrieval_metrics(broken, visual),
        lambda: class_retrieval_map(visual, broken, labels),
    ):
        with pytest.raises(ValueError, match="not finite"):
            measure()
    with pytest.raises(ValueError, match="no clip has a label"):
        class_retrieval_map(audio, visual, torch.zeros_like(labels))
