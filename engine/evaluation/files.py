"""What an evaluation leaves on disk: ``metrics.json``, ``per_class.csv`` and ``predictions.npz``."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from atomic import replacing, write_atomically
from engine.evaluation.predictions import Predictions


def write_report(
    folder: Path, report: dict[str, Any], predictions: Predictions | None, classes: list[str]
) -> None:
    """Writes the files; ``metrics.json`` last, so that its presence means all of them are there.

    Args:
        folder: Where to.
        report: The metrics.
        predictions: Scores of every clip, or None.
        classes: Names of the classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if predictions is not None:
        save_predictions(folder / "predictions.npz", predictions, classes)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(report["per_class"][0]))
        writer.writeheader()
        writer.writerows(report["per_class"])
        write_atomically(folder / "per_class.csv", text.getvalue())
    write_atomically(folder / "metrics.json", json.dumps(_plain(report), indent=1, ensure_ascii=False) + "\n")


def read_report(folder: Path) -> dict[str, Any] | None:
    """What ``metrics.json`` holds, or None where there is none that is whole."""
    try:
        found = json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _plain(value: Any) -> Any:
    """``value`` with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_predictions(path: Path, predictions: Predictions, classes: list[str]) -> None:
    """Writes scores in the order of the set.

    ``numpy.load(path)`` has ``ids`` (N,), ``classes`` (C,), ``labels`` (N, C) and for each kind of evaluation
    its scores (N, C), such as ``scores_audio_visual``.
    """
    arrays: dict[str, Any] = {f"scores_{name}": value.numpy() for name, value in predictions.scores.items()}
    arrays |= {"ids": np.array(predictions.ids), "classes": np.array(classes)}
    arrays["labels"] = predictions.labels.numpy().astype(np.uint8)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The report in a few lines for the console."""
    lines = []
    for name, values in report.get("results", {}).items():
        words = [f"mAP {values['mAP']:.4f}"]
        if "mAP_low" in values:
            words.append(f"({values['mAP_low']:.4f} … {values['mAP_high']:.4f})")
        words += [f"{key} {values[key]:.4f}" for key in ("mAUC", "d_prime", "top1", "top5") if key in values]
        lines.append(f"{name:22s} " + "  ".join(words))
    empty = report.get("classes_without_positives")
    if empty:
        lines.append(f"{len(empty)} of {report['classes']} classes have no positive clip and are left out")
    if "frozen_features" in report:
        parts: dict[str, list[str]] = {}  # such as retrieval_a2v, linear_audio
        for name, value in report["frozen_features"].items():
            part = name.removesuffix("_rank").rsplit("_", 1)[0]
            parts.setdefault(part, []).append(f"{name.removeprefix(f'{part}_')} {value:.4g}")
        lines += [f"frozen {part:22s} " + "  ".join(words) for part, words in parts.items()]
    return lines
