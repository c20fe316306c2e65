"""k nearest neighbours and a linear probe on frozen features.

Both give scores for every class, which are measured like a classifier's (`engine.evaluation.scores`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.evaluation.features import Features
from engine.evaluation.scores import is_single_label, summary_scores

#: Queries whose similarities to all training clips are held at a time.
_BLOCK = 1024


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of both probes.

    Attributes:
        neighbours: k of the nearest neighbours.
        temperature: A neighbour votes with ``exp(cosine / temperature)`` (0.07 as in DINO, arXiv 2104.14294).
        weight_decay: L2 penalty of the linear probe on standardised features.
        iterations: Greatest number of L-BFGS iterations of the linear probe.
    """

    neighbours: int = 20
    temperature: float = 0.07
    weight_decay: float = 1e-2
    iterations: int = 100

    def __post_init__(self) -> None:
        for name in ("neighbours", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe.{name} is {getattr(self, name)}: it must be at least 1")
        if self.temperature <= 0 or self.weight_decay < 0:
            raise ValueError("probe.temperature must be above 0 and probe.weight_decay 0 or more")


def knn_scores(train: Tensor, labels: Tensor, queries: Tensor, config: ProbeConfig) -> Tensor:
    """Weighted votes of the k most similar training clips.

    Args:
        train: (M, D) features.
        labels: (M, C) 0 or 1.
        queries: (N, D).
        config: The settings.

    Returns:
        (N, C) share of the votes that each class has.
    """
    train, queries = F.normalize(train.float(), dim=1), F.normalize(queries.float(), dim=1)
    k = min(config.neighbours, len(train))
    found = []
    for part in queries.split(_BLOCK):
        similarity, nearest = (part @ train.T).topk(k, dim=1)
        votes = (similarity / config.temperature).softmax(dim=1)
        found.append((votes[:, :, None] * labels[nearest]).sum(1))
    return torch.cat(found)


def fit_linear(
    train: Tensor, labels: Tensor, config: ProbeConfig, *, softmax: bool, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features, fitted by L-BFGS on all of them; deterministic.

    ::

        Σ_i weights[i] loss_i / M + weight_decay / 2 |W|²       # loss_i: cross-entropy, or BCE summed over classes

    Args:
        train: (M, D) features.
        labels: (M, C) 0 or 1.
        config: The settings.
        softmax: Whether the classes exclude each other; otherwise each is fitted for itself.
        weights: (M,) of the clips, 1 on average; None for all alike.

    Returns:
        (C, D) weight and (C,) bias for features as they are: the standardisation is in them.
    """
    std, mean = torch.std_mean(train.float(), dim=0, correction=min(1, len(train) - 1))
    std = std.clamp_min(1e-6)
    inputs, targets = (train.float() - mean) / std, labels.float().to(train.device)
    weight = torch.zeros(targets.shape[1], train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(targets.shape[1], device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=config.iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-5
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(inputs, weight, bias)
        if softmax:
            losses = F.cross_entropy(logits, targets, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        if weights is not None:
            losses = losses * weights
        loss = losses.mean() + config.weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]  # torch types it as returning a float
    weight = weight.detach() / std
    return weight, bias.detach() - weight @ mean


def linear_scores(train: Tensor, labels: Tensor, queries: Tensor, config: ProbeConfig) -> Tensor:
    """(N, C) logits of (N, D) queries by `fit_linear`, with softmax where each training clip has one class."""
    fitted = fit_linear(train, labels, config, softmax=is_single_label(labels))
    return F.linear(queries.float(), *fitted)


def probe_features(train: Features, test: Features, config: ProbeConfig) -> dict[str, float]:
    """Both probes on every stream: ``linear_audio_top1``, ``knn_visual_mAP``, ...

    Args:
        train: Features with labels to fit on.
        test: Features with labels to measure on.
        config: The settings.

    Raises:
        ValueError: One of the sets has no labels.
    """
    if train.labels is None or test.labels is None:
        raise ValueError("probes need labelled sets, and one of them has no labels")
    values = {}
    for stream, features in train.streams.items():
        for name, method in (("linear", linear_scores), ("knn", knn_scores)):
            scores = method(features, train.labels, test.streams[stream], config)
            measured = summary_scores(scores.cpu(), test.labels.cpu())
            values |= {f"{name}_{stream}_{key}": value for key, value in measured.items() if key != "d_prime"}
    return values


def cross_validated_probe(
    features: Tensor, labels: Tensor, config: ProbeConfig, folds: int = 5
) -> dict[str, float]:
    """A linear probe on held-out clips alone: fitted on all folds but one, measured on that one.

    Args:
        features: (N, D).
        labels: (N, C) 0 or 1.
        config: The settings.
        folds: Into how many parts the clips are dealt.

    Returns:
        ``top1`` where each clip has one class, otherwise ``mAP``.
    """
    fold = torch.arange(len(features), device=features.device) % folds
    scores = torch.empty(labels.shape, device=features.device)
    for held_out in range(folds):
        fitted = fold != held_out
        scores[~fitted] = linear_scores(features[fitted], labels[fitted], features[~fitted], config)
    values = summary_scores(scores.cpu(), labels.cpu())
    return {"top1": values["top1"]} if "top1" in values else {"mAP": values["mAP"]}
