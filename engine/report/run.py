"""Makes a page of runs: what they are, curves, reconstructions, retrieval to listen to, evaluations, in one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atomic import write_atomically
from engine.namesake import check_datasets
from engine.recipes.nearest import Nearest, nearest_recipe
from engine.report.charts import curves
from engine.report.clips import Retrieval, retrieval
from engine.report.evaluation import EvaluationView, evaluation_view
from engine.report.facts import Fact, attempt_rows, facts
from engine.report.media import Media
from engine.report.page import media_bytes, render
from engine.run_folder import RunFolder
from home_paths import command_line
from terminal import show_control_characters

#: Points in time of a reconstruction on the page, and films, at most.
_MOST_STEPS, _MOST_FILMS = 24, 6


@dataclass
class RunView:
    """What the page shows of a run.

    Attributes:
        name: The folder's name.
        facts: What it is.
        attempts: When and where it was begun and resumed.
        nearest: The recipe that it follows.
        charts: Numbers of its curves among the page's charts.
        reconstructions: By name, steps and the picture of each.
        retrieval: Hits and misses.
        films: Names and media.
        evaluations: Each, with the numbers of its charts.
        missing: What is not shown, and why.
    """

    name: str
    facts: list[Fact]
    attempts: list[tuple[str, ...]]
    nearest: Nearest | None
    charts: list[int]
    reconstructions: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    retrieval: Retrieval | None = None
    films: list[tuple[str, str]] = field(default_factory=list)
    evaluations: list[tuple[EvaluationView, list[int]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def make_report(folders: Sequence[Path], out: Path, megabytes: float = 10, clips: int = 64) -> list[str]:
    """Writes the page of some runs, which may be going on meanwhile.

    Args:
        folders: The runs.
        out: The page.
        megabytes: Its size, at most.
        clips: Held-out clips among which retrieval is shown; 0 leaves it out.

    Returns:
        What is not shown, and why.

    Raises:
        ValueError: None of the folders is a run, a package is missing, or the page would be too small for anything.
    """
    runs, wrong = open_runs(folders)
    charts: list[dict[str, Any]] = []
    views = [_begin(run, charts) for run in runs]
    limit = media_bytes(megabytes, charts) // len(runs)
    uris: dict[str, str] = {}
    for run, view in zip(runs, views, strict=True):
        media = Media(limit, prefix=f"r{len(uris)}_")
        _fill(view, run, media, charts, clips)
        uris |= media.uris
    page = render("report.html", charts, uris, runs=views, wrong=wrong)
    write_atomically(out, page)
    return wrong + [f"{view.name}: {sentence}" for view in views for sentence in view.missing]


def open_runs(folders: Sequence[Path]) -> tuple[list[RunFolder], list[str]]:
    """The folders that are runs, and what is wrong with the others.

    Raises:
        ValueError: None is.
    """
    runs, wrong = [], []
    for folder in folders:
        try:
            runs.append(RunFolder.open(folder))
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    if not runs:
        raise ValueError("; ".join(wrong))
    return runs, wrong


def _begin(run: RunFolder, charts: list[dict[str, Any]]) -> RunView:
    """The parts that cost little: text and curves."""
    nearest = nearest_recipe(run)
    view = RunView(run.name, facts(run, nearest), attempt_rows(run), nearest, _numbered(charts, curves(run)))
    view.missing += run.missing
    if not view.charts:
        view.missing.append("no curves: nothing has been logged yet")
    return view


def _fill(view: RunView, run: RunFolder, media: Media, charts: list[dict[str, Any]], clips: int) -> None:
    """The parts with pictures and sounds, the ones that matter most first."""
    _reconstructions(view, run, media)
    if clips:
        try:
            view.retrieval = retrieval(run, media, clips)
        except (ValueError, OSError) as error:
            view.missing.append(f"retrieval is not shown: {error}")
    for name in run.evaluations:
        evaluation = evaluation_view(run, name, media)
        view.evaluations.append((evaluation, _numbered(charts, evaluation.charts)))
        view.missing += [f"evaluation {name}: {sentence}" for sentence in evaluation.missing]
    if not run.evaluations and not run.pretrains:
        view.missing.append("no evaluation yet: evaluation/ is empty")
    for path in run.films[:_MOST_FILMS]:
        try:
            if (film := media.film(path)) is not None:
                view.films.append((path.stem, film))
        except (ValueError, OSError) as error:
            view.missing.append(f"films/{path.name} is not shown: {error}")
    if media.left_out:
        view.missing.append(f"{media.left_out} pictures, sounds and films did not fit: give --megabytes more")


def _reconstructions(view: RunView, run: RunFolder, media: Media) -> None:
    evaluated = tuple(f"{name}_" for name in run.evaluations)
    for name, pictures in run.pictures.items():
        if name.startswith(evaluated):  # charts show these
            continue
        steps = sorted(pictures)
        if len(steps) > _MOST_STEPS:
            steps = [steps[i] for i in np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int)]
        shown = []
        for step in steps:
            try:
                if (picture := media.png(pictures[step])) is not None:
                    shown.append((step, picture))
            except (ValueError, OSError) as error:
                view.missing.append(f"pictures/{pictures[step].name} is not shown: {error}")
        if shown:
            view.reconstructions[name.replace("_", " ")] = shown


def _numbered(charts: list[dict[str, Any]], more: list[dict[str, Any]]) -> list[int]:
    """Adds charts to the page's; returns their numbers."""
    first = len(charts)
    charts += more
    return list(range(first, len(charts)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the page that the command line asks for."""
    show_control_characters()
    check_datasets()
    parser = argparse.ArgumentParser(
        prog="python -m engine.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, finished or not")
    parser.add_argument("out", type=Path, metavar="OUT.html", help="the page to write")
    parser.add_argument("--megabytes", type=float, default=10, help="size of the page, at most (default: 10)")
    parser.add_argument(
        "--clips",
        type=int,
        default=64,
        help="held-out clips to embed for retrieval, 0 for none (default: 64)",
    )
    options = parser.parse_args(command_line(arguments))
    try:
        if options.out.suffix != ".html":
            raise ValueError(f"{options.out} must end in .html: it is the page to write")
        missing = make_report(options.runs, options.out, options.megabytes, options.clips)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    for sentence in missing:
        print(f"note: {sentence}")
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB); open it in a browser")
