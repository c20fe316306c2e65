"""What a head's predictions are worth where each clip has one class: F1, accuracy, tables, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.evaluation.scores import confusion_matrix


def single_label_scores(probabilities: Tensor, labels: Tensor, resamples: int = 0) -> dict[str, float]:
    """``weighted_f1``, ``macro_f1`` and ``accuracy``, as scikit-learn defines them (no division counts 0).

    Args:
        probabilities: (N, C).
        labels: (N, C), one 1 a row.
        resamples: Of the clips, for 95 % intervals (``_low``, ``_high``) by percentiles; 0 for none.
    """
    confusion = confusion_matrix(probabilities, labels).numpy()
    values = {name: float(value[0]) for name, value in _scores(confusion[None]).items()}
    if resamples:
        rng, total = np.random.default_rng(0), int(confusion.sum())
        # How often each pair of true and predicted class is drawn is all that a resample of the clips tells.
        drawn = rng.multinomial(total, confusion.ravel() / total, size=resamples)
        for name, found in _scores(drawn.reshape(-1, *confusion.shape)).items():
            low, high = np.quantile(found, [0.025, 0.975])
            values |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return values


def _scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """(R,) of each metric from (R, C, C) confusion matrices, true classes in rows."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(2), confusion.sum(1)
    seen = true + predicted
    f1 = 2 * hits / np.maximum(seen, 1)
    total = true.sum(1)
    return {
        "weighted_f1": (f1 * true).sum(1) / total,
        "macro_f1": f1.sum(1) / (seen > 0).sum(1),
        "accuracy": hits.sum(1) / total,
    }


def class_table(probabilities: Tensor, labels: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """A row a class: ``class``, ``clips``, ``precision``, ``recall``, ``f1``; arguments as of `single_label_scores`."""
    # Imported here: it is slow, and only the end of an evaluation needs it.
    from sklearn.metrics import precision_recall_fscore_support

    truth, said = labels.argmax(1).numpy(), probabilities.argmax(1).numpy()
    given: dict[str, Any] = {"labels": range(len(classes)), "zero_division": 0}
    columns: Any = precision_recall_fscore_support(truth, said, **given)
    return [
        {"class": name, "clips": int(clips), "precision": float(p), "recall": float(r), "f1": float(f)}
        for name, p, r, f, clips in zip(classes, *columns, strict=True)
    ]
