"""An evaluation on the page: results with intervals, classes, confusion, and the worst errors with their clips."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.embeddings import load_npz
from engine.evaluation.scores import average_precision_interval, confusion_matrix, is_single_label
from engine.report.charts import bar_chart, heatmap
from engine.report.clips import ClipView, local_set, open_table, read_clips, view
from engine.report.media import Media
from engine.run_folder import RunFolder

#: Classes in a chart of bars: of more, the best and the worst halves; and in a confusion matrix.
_MOST_BARS, _MOST_CONFUSED = 60, 120
_ERRORS = 6
_METRICS = ("mAP", "top1", "top5", "mAUC", "d_prime", "weighted_f1", "macro_f1", "accuracy")


@dataclass(frozen=True)
class Scores:
    """What ``predictions.npz`` holds.

    Attributes:
        ids: N clips.
        classes: C names.
        labels: (N, C) 0 or 1.
        scores: (N, C) of the kind of evaluation that the table by class is of.
    """

    ids: list[str]
    classes: list[str]
    labels: Tensor
    scores: Tensor


class _ClassRow(NamedTuple):
    """A class with positives: its clips, average precision, and the bounds of that."""

    name: str
    clips: int
    value: float
    low: float
    high: float


@dataclass
class EvaluationView:
    """What the page shows of one evaluation.

    Attributes:
        name: Which weights it is of.
        facts: What was evaluated.
        columns: Names of the metrics in ``rows``.
        rows: Each kind of input with its metrics as text.
        frozen: The same of frozen features, as pairs of name and value.
        charts: By class, and confusion.
        classes: Each class with positives, average precision and interval, as text.
        errors: The worst.
        missing: What is not there, and why.
    """

    name: str
    facts: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)
    frozen: list[tuple[str, str]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    classes: list[tuple[str, ...]] = field(default_factory=list)
    errors: list[ClipView] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def evaluation_view(run: RunFolder, name: str, media: Media) -> EvaluationView:
    """One of the run's evaluations; what can't be shown is said in it."""
    report, shown = run.evaluations[name], EvaluationView(name)
    clips, classes, shards = (report.get(key) for key in ("clips", "classes", "shards"))
    if isinstance(clips, int) and isinstance(classes, int):
        shown.facts = f"{clips:,} clips of {classes} classes, from {shards}"
    results = report.get("results")
    if isinstance(results, dict):
        rows = {str(kind): values for kind, values in results.items() if isinstance(values, dict)}
        shown.columns = [metric for metric in _METRICS if any(metric in values for values in rows.values())]
        shown.rows = [
            (kind, [with_interval(values, metric) for metric in shown.columns])
            for kind, values in rows.items()
        ]
    frozen = report.get("frozen_features")
    if isinstance(frozen, dict):
        shown.frozen = [(str(key), number(value)) for key, value in frozen.items()]
    if isinstance(report.get("heads"), dict):
        _heads(shown, report)
    elif "per_class_of" in report:
        try:
            scores = read_scores(
                run.path / "evaluation" / name / "predictions.npz", str(report["per_class_of"])
            )
            _classes(shown, scores, str(report["per_class_of"]))
        except (OSError, ValueError) as error:
            shown.missing.append(f"classes, confusion and errors are not shown: {error}")
            return shown
        try:
            shown.errors = worst_errors(scores, local_set(shards), media)
        except (OSError, ValueError) as error:
            shown.missing.append(f"the clips of the worst errors are not shown: {error}")
    return shown


def read_scores(path: Path, kind: str) -> Scores:
    """Reads ``predictions.npz``.

    Raises:
        ValueError: It is not what an evaluation writes.
    """
    try:
        arrays = load_npz(path)
        ids, classes = arrays["ids"].tolist(), arrays["classes"].tolist()
        labels, scores = arrays["labels"], arrays[f"scores_{kind}"]
    except Exception as error:  # damaged archives end in errors of all kinds
        raise ValueError(f"{path} can't be read: {error or type(error).__name__}") from error
    shape = (len(ids), len(classes))
    if (
        labels.shape != shape
        or scores.dtype.kind != "f"
        or scores.shape != shape
        or not np.isfinite(scores).all()
        or 0 in shape
    ):
        raise ValueError(f"{path} does not hold finite scores of its {shape[0]} clips and {shape[1]} classes")
    kinds = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(scores.astype(np.float32))
    return Scores([str(x) for x in ids], [str(x) for x in classes], *kinds)


def _heads(shown: EvaluationView, report: dict[str, Any]) -> None:
    """The confusion matrices of a run with several heads."""
    shown.facts = f"{report.get('clips')} clips, from {report.get('shards')}; {len(report['heads'])} heads"
    confusion = report.get("confusion")
    for head, counts in (confusion if isinstance(confusion, dict) else {}).items():
        classes = [str(name) for name in report["heads"].get(head, ())]
        try:
            matrix = torch.tensor(counts, dtype=torch.float64)
            if matrix.shape != (len(classes), len(classes)):
                raise ValueError(f"it is no matrix of {len(classes)} classes")
        except (TypeError, ValueError) as error:
            shown.missing.append(f"the confusion of {head} is not shown: {error}")
            continue
        if len(classes) <= _MOST_CONFUSED:
            shown.charts.append(
                _confusion(f"Confusion, {head}, {report.get('per_class_of')}", classes, matrix)
            )


def _confusion(title: str, classes: list[str], counts: Tensor) -> dict[str, Any]:
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    note = "rows: true class; columns: said; share of the row"
    return heatmap(title, [name[:40] for name in classes], share.tolist(), note)


def _classes(shown: EvaluationView, scores: Scores, kind: str) -> None:
    """The table and the bars by class, and the confusion matrix."""
    from engine.evaluation.scores import class_scores

    each = class_scores(scores.scores, scores.labels)
    rows = zip(scores.classes, each.positives.tolist(), each.average_precision.tolist(), strict=True)
    table = [
        _ClassRow(name, count, value, *average_precision_interval(scores.scores[:, c], scores.labels[:, c]))
        for c, (name, count, value) in enumerate(rows)
        if count
    ]
    table.sort(key=lambda row: -row.value)
    shown.classes = [
        (row.name, f"{row.clips}", f"{row.value:.3f}", f"{row.low:.3f} – {row.high:.3f}") for row in table
    ]
    bars, title = table, f"Average precision by class, {kind}"
    if len(table) > _MOST_BARS:
        half = _MOST_BARS // 2
        bars, title = table[:half] + table[-half:], f"{title}: the best and the worst {half} of {len(table)}"
    names = [f"{row.name[:40]} ({row.clips})" for row in bars]
    values, low, high = [row.value for row in bars], [row.low for row in bars], [row.high for row in bars]
    shown.charts.append(bar_chart(title, names, values, low, high))
    if is_single_label(scores.labels) and len(scores.classes) <= _MOST_CONFUSED:
        counts = confusion_matrix(scores.scores, scores.labels).double()
        shown.charts.append(_confusion(f"Confusion, {kind}", scores.classes, counts))


def worst_errors(scores: Scores, location: str, media: Media) -> list[ClipView]:
    """The clips whose best wrong class beats their own classes by most, with frame and sound.

    Raises:
        ValueError: The set is gone, or another.
    """
    positive = scores.labels > 0
    own = scores.scores.masked_fill(~positive, torch.inf).amin(1).nan_to_num(posinf=0.0)
    wrong, said = scores.scores.masked_fill(positive, -torch.inf).max(1)
    margin = wrong - own
    worst = [i for i in margin.topk(min(_ERRORS, len(margin))).indices.tolist() if margin[i] > 0]
    if not worst:
        return []
    places = {name: row for row, name in enumerate(open_table(location).ids())}
    rows = [places[scores.ids[i]] for i in worst if scores.ids[i] in places]
    if len(rows) < len(worst):
        raise ValueError(f"{location} does not hold the clips that were evaluated")
    clips = {
        batch.ids[place]: (batch, place)
        for batch in read_clips(location, np.array(rows))
        for place in range(len(batch))
    }
    found = []
    for i in worst:
        true = ", ".join(scores.classes[c] for c in positive[i].nonzero().flatten().tolist()) or "nothing"
        text = f"is {true} ({own[i]:.2f}), said {scores.classes[int(said[i])]} ({wrong[i]:.2f})"
        if scores.ids[i] in clips:
            found.append(view(*clips[scores.ids[i]], media, text))
        else:
            found.append(ClipView(scores.ids[i], None, None, f"{text}; can't be read"))
    return found


def with_interval(values: dict[str, Any], metric: str) -> str:
    """A metric as text, with its 95 % interval where there is one."""
    low, high = values.get(f"{metric}_low"), values.get(f"{metric}_high")
    bounds = f" ({number(low)} – {number(high)})" if low is not None and high is not None else ""
    return f"{number(values.get(metric))}{bounds}"


def number(value: object) -> str:
    """A number with four digits, a dash for anything else."""
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else "–"
