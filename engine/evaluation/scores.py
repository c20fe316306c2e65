"""Classification metrics from scores and labels, and their confidence intervals by bootstrap over clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

#: Numbers held at a time while bootstrapping: resamples × clips.
_BLOCK = 1 << 23


@dataclass(frozen=True)
class ClassScores:
    """Metrics of each class; NaN where a class has no positive clip (or, for the AUC, no negative).

    Attributes:
        positives: (C,) clips that have the class.
        average_precision: (C,).
        auc: (C,) area under the ROC curve.
    """

    positives: Tensor
    average_precision: Tensor
    auc: Tensor


def class_scores(scores: Tensor, labels: Tensor) -> ClassScores:
    """Average precision and AUC class by class, by torchmetrics.

    Args:
        scores: (N, C), higher is likelier.
        labels: (N, C) 0 or 1.

    Raises:
        ValueError: No clip has any class, or a score is not finite.
    """
    # Imported here: it is slow, and only the end of an evaluation needs it.
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    if not torch.isfinite(scores).all():
        raise ValueError("scores are not finite: the weights are damaged or the inputs are")
    positives = labels.sum(0).long()
    if not positives.any():
        raise ValueError("no clip of the evaluated set has a label: there is nothing to measure")
    found = {"average_precision": torch.full((labels.shape[1],), math.nan, dtype=torch.float64)}
    found["auc"] = found["average_precision"].clone()
    for c, count in enumerate(positives.tolist()):
        target = labels[:, c].long()
        # Ranks instead of scores: torchmetrics would squeeze values outside 0 … 1 through a sigmoid.
        ranks = torch.unique(scores[:, c], return_inverse=True)[1].double()
        ranks = ranks / max(1.0, ranks.max().item())
        if count:
            found["average_precision"][c] = binary_average_precision(ranks, target).double()
        if 0 < count < len(labels):
            found["auc"][c] = binary_auroc(ranks, target).double()
    return ClassScores(positives, **found)


def top_k(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """(N,) the probability that a clip's class is among its k best scores, ties in random order.

    So a model that scores all classes alike gets chance, k / C.

    Args:
        scores: (N, C).
        labels: (N, C), one 1 a row.
        k: How many.
    """
    own = scores.gather(1, labels.argmax(1, keepdim=True))
    above, tied = (scores > own).sum(1).double(), (scores == own).sum(1).double()
    return ((k - above) / tied).clamp(0, 1)


def is_single_label(labels: Tensor) -> bool:
    """Whether every clip has exactly one class."""
    return bool((labels.sum(1) == 1).all())


def summary_scores(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """mAP, mAUC and d′ over the classes with positives; top-1 and top-5 where each clip has one class.

    ``d' = √2 Φ⁻¹(mAUC)``, as AudioSet's papers have it.

    Args:
        scores: (N, C).
        labels: (N, C) 0 or 1.
    """
    each = class_scores(scores, labels)
    auc = each.auc.nanmean().item()
    values = {"mAP": each.average_precision.nanmean().item(), "mAUC": auc, "d_prime": d_prime(auc)}
    if is_single_label(labels):
        values |= {f"top{k}": top_k(scores, labels, k).mean().item() for k in (1, 5) if k < labels.shape[1]}
    return values


def d_prime(auc: float) -> float:
    """``√2 Φ⁻¹(AUC)``; infinite for a perfect one."""
    if math.isnan(auc) or not 0 < auc < 1:
        return math.nan if math.isnan(auc) else math.inf * (1 if auc == 1 else -1)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def weighted_average_precision(scores: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Average precision of one class under several weightings of the clips.

    ::

        AP = Σ_thresholds (recall_t - recall_{t-1}) precision_t      # clips of equal score share a threshold

    Args:
        scores: (N,).
        target: (N,) 0 or 1.
        weights: (N, R), such as how often each clip is in each of R resamples.

    Returns:
        (R,) float32; NaN where no positive clip has weight.
    """
    # Recall is gained only at scores that a positive clip has: precision is needed there alone.
    positive = target > 0
    levels, own = torch.unique(-scores[positive], return_inverse=True)
    # The first level that counts the clip; beyond all of them for the rest.
    reached = torch.searchsorted(levels, -scores)
    seen = weights.new_zeros(len(levels) + 1, weights.shape[1]).index_add_(0, reached, weights)[:-1].cumsum(0)
    gained = torch.zeros_like(seen).index_add_(0, own, weights[positive])
    found = gained.cumsum(0)
    return (gained * found / seen.clamp_min(1e-12)).sum(0) / found[-1]


def bootstrap(
    scores: Tensor, labels: Tensor, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % confidence intervals by the percentiles of resamples of the clips.

    A class without a positive clip in a resample is left out of that resample's mean.

    Args:
        scores: (N, C).
        labels: (N, C) 0 or 1.
        resamples: How many; 0 gives none.
        seed: Of the resampling.

    Returns:
        Lower and upper bound of ``mAP``, and of ``top1`` where each clip has one class.
    """
    if not resamples:
        return {}
    generator = torch.Generator().manual_seed(seed)
    single = is_single_label(labels)
    hits = top_k(scores, labels, 1).float() if single else None
    classes = [c for c in range(labels.shape[1]) if labels[:, c].any()]
    drawn: dict[str, list[Tensor]] = {"mAP": [], "top1": []}
    step = max(1, min(resamples, _BLOCK // len(scores)))
    for first in range(0, resamples, step):
        counts = _resample_counts(len(scores), min(step, resamples - first), generator)
        parts = [weighted_average_precision(scores[:, c], labels[:, c], counts) for c in classes]
        drawn["mAP"].append(torch.stack(parts).nanmean(0))
        if hits is not None:
            drawn["top1"].append(hits @ counts / len(scores))
    return {name: _interval(torch.cat(values)) for name, values in drawn.items() if values}


def _resample_counts(clips: int, resamples: int, generator: torch.Generator) -> Tensor:
    """(N, R) how often each clip is drawn."""
    picks = torch.randint(clips, (resamples, clips), generator=generator)
    counts = torch.zeros(resamples, clips).scatter_add_(1, picks, torch.ones(1).expand_as(picks))
    return counts.T.contiguous()


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = values.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """(C, C) int64: rows the true class, columns the best-scored one; for clips with one class."""
    num_classes = labels.shape[1]
    pairs = labels.argmax(1) * num_classes + scores.argmax(1)
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
