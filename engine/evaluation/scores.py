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


def average_precision_influence(scores: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """Average precision of one class, and by how much each clip moves it.

    ::

        AP = 1/n Σ_i found_i / seen_i      # over positives; positives and clips that score at least as high as i
        influence of a clip = AP - AP without the clip

    The positives' influences are spread about their mean by √((n-1)/n), so that the sum of squares of all is the
    jackknife's variance of AP, with n positives as small as two.

    Args:
        scores: (N,).
        target: (N,) 0 or 1, with at least two positives.

    Returns:
        The average precision and (N,) float64 influences.
    """
    ranks, positive = scores.double(), target > 0
    own, order = ranks[positive].sort(descending=True)
    n = len(own)
    ascending, everything = own.flip(0), ranks.sort().values
    found = n - torch.searchsorted(ascending, own).double()
    seen = len(ranks) - torch.searchsorted(everything, own).double()
    precision = found / seen
    # Positives that score above a clip keep their precision without it; the others lose it from their counts.
    above = n - torch.searchsorted(ascending, ranks, right=True)
    fewer = (seen - 1).clamp_min(1)
    influence = -_suffix_sums(precision / fewer)[above] / n
    before = torch.cat([own.new_zeros(1), precision.cumsum(0)])[above[positive][order]]
    without = (found - 1) / fewer
    left = before + _suffix_sums(without)[above[positive][order]] - without
    lost = precision.mean() - left / (n - 1)
    lost = lost.mean() + (lost - lost.mean()) * math.sqrt((n - 1) / n)
    influence[positive] = torch.empty_like(lost).index_copy_(0, order, lost)
    return precision.mean().item(), influence


def average_precision_interval(scores: Tensor, target: Tensor) -> tuple[float, float]:
    """95 % confidence interval of one class's average precision, by the jackknife's variance on the scale of log odds.

    Args:
        scores: (N,).
        target: (N,) 0 or 1.

    Returns:
        Lower and upper bound; 0 and 1 with fewer than two positives, which say nothing of how it scatters.
    """
    if int((target > 0).sum()) < 2:
        return 0.0, 1.0
    value, influence = average_precision_influence(scores, target)
    if not 0 < value < 1:
        return value, value
    logit, reach = math.log(value / (1 - value)), 1.96 * influence.norm().item() / (value * (1 - value))
    low, high = torch.tensor([logit - reach, logit + reach], dtype=torch.float64).sigmoid().tolist()
    return low, high


def _suffix_sums(values: Tensor) -> Tensor:
    """(n + 1,) sums from each place to the end."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])


def mean_average_precision_influence(scores: Tensor, labels: Tensor) -> tuple[float, Tensor] | None:
    """The mAP over classes with positives, and (N,) by how much each clip moves it; None where that cannot be known.

    A class with a single positive says nothing of how its AP scatters. As where strata of one member are collapsed
    in surveys (Cochran, *Sampling Techniques*, 5A.12), the scatter among such classes stands for it, which is on the
    safe side. With a single class of a single positive there is nothing to go by.

    Args:
        scores: (N, C).
        labels: (N, C) 0 or 1.
    """
    positives = labels.sum(0).long()
    values, total = [], torch.zeros(len(scores), dtype=torch.float64)
    for c in (positives > 1).nonzero().flatten().tolist():
        value, influence = average_precision_influence(scores[:, c], labels[:, c])
        values.append(value)
        total += influence
    lonely = (positives == 1).nonzero().flatten()
    clips = labels[:, lonely].argmax(0)
    single = 1 / (scores[:, lonely] >= scores[clips, lonely]).sum(0).double()
    everything = torch.cat([torch.tensor(values, dtype=torch.float64), single])
    if len(lonely):
        reference = single if len(lonely) > 1 else everything
        if len(reference) == 1:
            return None
        spread = (single - reference.mean()) * math.sqrt(len(reference) / (len(reference) - 1))
        total.index_add_(0, clips, spread)
    return everything.mean().item(), total / len(everything)


def bootstrap(
    scores: Tensor, labels: Tensor, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % confidence intervals by the percentiles of resamples of the clips.

    A resample's metric is taken to first order, from how much each clip moves it::

        logit(metric*) = logit(metric) + Σ_i (times clip i was drawn - 1) · influence_i / (metric (1 - metric))

    Computed anew on the drawn clips, mAP would be off: rare classes have no positive in a resample, and a positive
    drawn twice finds itself. Simulated, 91 to 99 of 100 intervals hold the mean metric of such sets from one source,
    with classes of one positive to a hundred.

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
    metrics = {"mAP": mean_average_precision_influence(scores, labels)}
    if is_single_label(labels):
        hits = top_k(scores, labels, 1)
        metrics["top1"] = hits.mean().item(), (hits - hits.mean()) / len(hits)
    known = {name: found for name, found in metrics.items() if found is not None}
    influences = torch.stack([influence for _, influence in known.values()]) if known else None
    intervals = dict.fromkeys(metrics, (0.0, 1.0))
    if influences is not None:
        moved = _resampled_sums(influences, resamples, torch.Generator().manual_seed(seed))
        for (name, (value, _)), row in zip(known.items(), moved, strict=True):
            intervals[name] = _interval(value, row)
    return intervals


def _resampled_sums(influences: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """(M, R) Σ_i (times clip i was drawn - 1) · influence_i of (M, N) influences, in each of R resamples."""
    clips = influences.shape[1]
    step = max(1, min(resamples, _BLOCK // clips))
    sums = []
    for first in range(0, resamples, step):
        picks = torch.randint(clips, (min(step, resamples - first), clips), generator=generator)
        sums.append(influences[:, picks].sum(2) - influences.sum(1, keepdim=True))
    return torch.cat(sums, 1)


def _interval(value: float, moved: Tensor) -> tuple[float, float]:
    """The percentiles of ``value + moved`` on the scale of log odds, where what lies in 0 … 1 scatters alike."""
    if not 0 < value < 1:
        return value, value
    moved = moved / (value * (1 - value))
    edges = moved.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)) + math.log(value / (1 - value))
    low, high = edges.sigmoid().tolist()
    return min(low, value), max(high, value)


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """(C, C) int64: rows the true class, columns the best-scored one; for clips with one class."""
    num_classes = labels.shape[1]
    pairs = labels.argmax(1) * num_classes + scores.argmax(1)
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
