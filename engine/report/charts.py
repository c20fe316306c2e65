"""Charts as data, which the page's script draws with plotly. Curves carry all their x axes: a reader chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.run_folder import RunFolder, training_hours

#: Points of a curve on the page: of more, evenly spaced ones are shown.
MOST_POINTS = 1500
#: Vertical marks of a run on its charts, at most.
_MOST_MARKS = 40


@dataclass(frozen=True)
class Group:
    """A chart: the metrics whose names match.

    Attributes:
        title: Of the chart.
        pattern: Of names of metrics.
        log: Whether its y axis begins as a logarithmic one.
        percent: Whether values are shares.
        note: What helps to read it.
        hide_zeros: Whether it is left out where every value is 0.
    """

    title: str
    pattern: str
    log: bool = False
    percent: bool = False
    note: str = ""
    hide_zeros: bool = False


GROUPS = (
    Group("Loss", r"train/loss(_.*)?"),
    Group(
        "Accuracy in the batch",
        r"train/.*(accuracy|chance).*",
        percent=True,
        note="beside chance where it is a contrast",
    ),
    Group("Retrieval, sound → picture", r"val/retrieval_(a2v|chance)_(r\d+|map)", percent=True),
    Group("Retrieval, picture → sound", r"val/retrieval_(v2a|chance)_(r\d+|map)", percent=True),
    Group("Median rank of the match", r"val/.*median_rank", note="1 is best"),
    Group("Linear probes", r"val/linear_.*", percent=True),
    Group("Held-out scores", r"val/(mAP|mAUC|top\d+)", percent=True),
    Group("d′ on held-out clips", r"val/d_prime"),
    Group("Learning rates", r"train/lr_.*", log=True),
    Group("Gradient norm", r"train/grad_norm", log=True, note="of the whole gradient, before clipping"),
    Group("Samples per second", r"train/samples_per_second"),
    Group(
        "Utilisation and waiting for data",
        r"train/(mfu|data_wait_share)",
        percent=True,
        note="mfu: share of the peak measured on the device; data_wait_share: of the time",
    ),
    Group("Unreadable clips", r"train/unreadable_clips", hide_zeros=True),
    Group("Other training values", r"train/(?!epoch$).*"),
    Group("Other held-out values", r"val/(?!retrieval_chance).*"),
)


@dataclass(frozen=True)
class Course:
    """Samples and hours of a run by its steps, between which they are linear.

    Attributes:
        batch: Clips to a step.
        steps: Ascending.
        hours: Training hours up to each.
    """

    batch: int
    steps: list[float] = field(default_factory=lambda: [0.0])
    hours: list[float] = field(default_factory=lambda: [0.0])

    @classmethod
    def of(cls, run: RunFolder) -> Course:
        """A run's."""
        hours = training_hours(run)
        return cls(run.batch, [float(step) for step in hours], list(hours.values()))

    def axes(self, steps: Sequence[float]) -> dict[str, list[float]]:
        """What steps are on each x axis."""
        return {
            "steps": list(steps),
            "samples": [step * self.batch for step in steps],
            "hours": np.interp(steps, self.steps, self.hours).tolist(),
        }


def series(run: RunFolder, name: str, course: Course) -> dict[str, Any] | None:
    """The curve of a metric, or None where the run has no value of it."""
    points = [(record["step"], record[name]) for record in run.records if name in record]
    if not points:
        return None
    steps, values = zip(*thin(points), strict=True)
    return {
        "name": short(name),
        "x": course.axes(steps),
        "y": list(values),
        "points": name.startswith("val/"),
    }


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of the points, evenly spaced, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    places = np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)
    return [points[place] for place in places]


def curves(run: RunFolder) -> list[dict[str, Any]]:
    """All charts of a run; a metric is in the first whose pattern it matches, chance in each."""
    course = Course.of(run)
    names = [
        name for name in dict.fromkeys(key for record in run.records for key in record) if name != "step"
    ]
    used: set[str] = set()
    charts = []
    for group in GROUPS:
        chosen = [
            name
            for name in names
            if re.fullmatch(group.pattern, name) and (name not in used or "retrieval_chance" in name)
        ]
        used |= set(chosen)
        found = [one for name in chosen if (one := series(run, name, course)) is not None]
        told = any(any(one["y"]) for one in found) or not group.hide_zeros
        if told and any("chance" not in one["name"] for one in found):
            charts.append(line_chart(group, found) | {"marks": marks(run, course)})
    return charts


def line_chart(group: Group, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A chart of curves."""
    return {
        "kind": "lines",
        "title": group.title,
        "note": group.note,
        "log": group.log,
        "percent": group.percent,
        "series": [one | {"chance": "chance" in one["name"]} for one in found],
    }


def marks(run: RunFolder, course: Course) -> list[dict[str, Any]]:
    """Where a run was resumed, and which steps were skipped."""
    resumed = sorted({int(line["step"]) for line in run.attempts if line["step"]})
    found = [("resumed", step) for step in resumed] + [("skipped", step) for step in run.skipped]
    return [
        {"text": text, "x": {axis: value[0] for axis, value in course.axes([step]).items()}}
        for text, step in found[-_MOST_MARKS:]
    ]


def short(name: str) -> str:
    """A metric's name without what its chart says."""
    return re.sub(r"^(train/|val/)(retrieval_)?", "", name)[:60]


def bar_chart(
    title: str, names: list[str], values: list[float], low: list[float], high: list[float]
) -> dict[str, Any]:
    """Horizontal bars with intervals, the first on top."""
    return {"kind": "bars", "title": title, "names": names, "values": values, "low": low, "high": high}


def heatmap(title: str, names: list[str], matrix: list[list[float]], note: str) -> dict[str, Any]:
    """Rows by columns of shares."""
    return {"kind": "heatmap", "title": title, "names": names, "matrix": matrix, "note": note}
