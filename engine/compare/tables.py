"""What runs are compared by: tables of text, for the terminal and for the page alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.recipes.cards import judge
from engine.recipes.nearest import Difference, Nearest, differences
from engine.report.charts import Course
from engine.report.evaluation import number, with_interval
from engine.report.facts import duration
from engine.run_folder import RunFolder, training_hours

#: Metrics worth a row: of training, of held-out clips, and of evaluations.
_SHOWN = re.compile(
    r"train/(loss(_.*)?|samples_per_second)|val/(retrieval_\w+_(r\d+|median_rank|map)|linear_.*|mAP|top1|.*iou.*|.*accuracy.*)"
)
_EVALUATED = ("mAP", "top1")
_LONGEST = 40


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: What it shows.
        head: Names of the columns.
        rows: A row each.
        note: How to read it.
    """

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def labels(runs: Sequence[RunFolder]) -> list[str]:
    """A short name for each run; the same twice is numbered."""
    names = [run.path.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [run.name for run in runs]
    return [
        f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)
    ]


def tables(runs: Sequence[RunFolder], nearest: Sequence[Nearest | None], cards: bool) -> list[Table]:
    """All tables of a comparison; those that would be empty are left out."""
    found = [_overview(runs, nearest), _final(runs), *_at_equal(runs), _differences(runs)]
    if cards:
        found += _cards(runs, nearest)
    return [table for table in found if table.rows]


def different_tasks(runs: Sequence[RunFolder]) -> str:
    """A sentence where the runs learn different things; empty where they do not."""
    tasks = {_task(run) for run in runs}
    if len(tasks) < 2:
        return ""
    return (
        f"the runs learn different things ({'; '.join(sorted(tasks))}): their losses can't be compared, and other "
        "metrics only where both have them"
    )


def _task(run: RunFolder) -> str:
    if not run.config:
        return "unknown"
    program = "pretraining" if run.pretrains else "fine-tuning"
    kind = run.value("objective.kind")  # which earlier configs of fine-tuning did not say
    return f"{program} by {kind}" if kind else program


def _overview(runs: Sequence[RunFolder], nearest: Sequence[Nearest | None]) -> Table:
    def flops(run: RunFolder) -> str:
        each = run.attempt("flops_per_sample")
        return f"{each * run.step * run.batch:.3g}" if isinstance(each, int | float) else "–"

    def parameters(run: RunFolder) -> str:
        count = run.attempt("parameters")
        return f"{count / 1e6:,.1f} M" if isinstance(count, int) else "–"

    rows: list[tuple[str, Callable[[RunFolder], str]]] = [
        ("task", _task),
        ("state", lambda run: str(run.status.get("state") or "unknown")[:_LONGEST]),
        ("steps", lambda run: f"{run.step:,}"),
        ("samples", lambda run: f"{run.step * run.batch:,}"),
        ("training time", lambda run: duration(list(training_hours(run).values())[-1])),
        ("processes", lambda run: str(run.attempt("world_size", "–"))),
        ("parameters", parameters),
        ("FLOPs", flops),
    ]
    table = [(name, *map(text, runs)) for name, text in rows]
    table.append(("recipe", *(one.path.name if one else "–" for one in nearest)))
    changed = ["–" if one is None else ", ".join(x.key for x in one.changed) or "none" for one in nearest]
    table.append(
        ("changed settings", *(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in changed))
    )
    return Table("Runs", ("", *labels(runs)), table)


def _final(runs: Sequence[RunFolder]) -> Table:
    """The newest values, and results of evaluations with their intervals."""
    rows = []
    for name in _metrics(runs):
        rows.append((name, *(number(run.last(name)) for run in runs)))
    evaluated: dict[tuple[str, str], None] = {}
    for run in runs:
        for name, report in run.evaluations.items():
            results = report.get("results")
            evaluated |= (
                dict.fromkeys((name, str(kind)) for kind in results) if isinstance(results, dict) else {}
            )
    for name, kind in evaluated:
        for metric in _EVALUATED:
            cells = []
            for run in runs:
                results = run.evaluations.get(name, {}).get("results")
                values = results.get(kind) if isinstance(results, dict) else None
                cells.append(with_interval(values, metric) if isinstance(values, dict) else "–")
            if any(cell != "–" for cell in cells):
                rows.append((f"{name}/{kind} {metric}", *cells))
    return Table("Newest values", ("", *labels(runs)), rows, "95 % intervals in brackets")


def _at_equal(runs: Sequence[RunFolder]) -> list[Table]:
    """Values at the most samples, and at the most hours, that all runs have."""
    if len(runs) < 2:
        return []
    courses = [Course.of(run) for run in runs]
    found = []
    for axis, title in (("samples", "samples"), ("hours", "training time")):
        ends = [course.axes([_last_step(run)])[axis][0] for run, course in zip(runs, courses, strict=True)]
        least = min(ends)
        if least <= 0:
            continue
        rows = []
        for name in _metrics(runs):
            cells = [_at(run, course, name, axis, least) for run, course in zip(runs, courses, strict=True)]
            rows.append((name, *map(number, cells)))
        shown = f"{least:,.0f} samples" if axis == "samples" else duration(least)
        note = "the last value up to there"
        found.append(Table(f"At equal {title}: {shown}", ("", *labels(runs)), rows, note))
    return found


def _last_step(run: RunFolder) -> float:
    return run.records[-1]["step"] if run.records else 0.0


def _at(run: RunFolder, course: Course, name: str, axis: str, most: float) -> float | None:
    points = [(record["step"], record[name]) for record in run.records if name in record]
    places = course.axes([step for step, _ in points])[axis]
    values = [value for place, (_, value) in zip(places, points, strict=True) if place <= most * (1 + 1e-9)]
    return values[-1] if values else None


def _metrics(runs: Sequence[RunFolder]) -> list[str]:
    names = dict.fromkeys(name for run in runs for record in run.records for name in record)
    chosen = [name for name in names if _SHOWN.fullmatch(name) and "chance" not in name]
    return sorted(chosen, key=lambda name: not name.startswith("train/"))


def _differences(runs: Sequence[RunFolder]) -> Table:
    found: list[Difference] = differences([run.config for run in runs]) if len(runs) > 1 else []
    rows = [(one.key, *(_short(value) for value in one.values)) for one in found]
    note = "what decides what is learned comes first"
    return Table("Settings that differ", ("", *labels(runs)), rows, note)


def _cards(runs: Sequence[RunFolder], nearest: Sequence[Nearest | None]) -> list[Table]:
    verdicts, figures = [], []
    for run, label, recipe in zip(runs, labels(runs), nearest, strict=True):
        judgement = judge(run, recipe)
        verdicts.append((label, recipe.path.name if recipe else "–", judgement.verdict, judgement.why))
        figures += [(label, *row) for row in judgement.rows]
    head = ("run", "metric", "step", "expected", "tolerance", "found", "")
    return [
        Table("Recipe cards", ("run", "recipe", "verdict", ""), verdicts),
        Table("Figures of the cards", head, figures),
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"
