"""Compares runs: what they reach, at equal samples and at equal hours, what differs, and what their recipes expect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atomic import write_atomically
from datasets.console import print_table, quiet_end
from engine.compare.tables import Table, different_tasks, labels, tables
from engine.namesake import check_datasets
from engine.recipes.nearest import nearest_recipe
from engine.report.charts import Course, Group, line_chart, series
from engine.report.page import render
from engine.report.run import open_runs
from engine.run_folder import RunFolder
from home_paths import command_line
from terminal import show_control_characters

#: Charts on the page, at most.
_MOST_CHARTS = 60


def overlaid(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """A chart for each metric of training and of held-out clips, with a curve for each run that has it."""
    names = dict.fromkeys(name for run in runs for record in run.records for name in record)
    shown = [name for name in names if name.startswith(("train/", "val/")) and "chance" not in name]
    shown = [name for name in sorted(shown) if name not in ("train/epoch", "train/unreadable_clips")]
    courses, charts = [Course.of(run) for run in runs], []
    for name in shown[:_MOST_CHARTS]:
        curves = []
        for place, (run, course, label) in enumerate(zip(runs, courses, labels(runs), strict=True)):
            curve = series(run, name, course)
            if curve is not None:
                curves.append(curve | {"name": label, "colour": place})
        log = name.startswith("train/lr") or name == "train/grad_norm"
        charts.append(line_chart(Group(name, "", log=log), curves))
    return charts


def write_page(out: Path, runs: Sequence[RunFolder], found: list[Table], notes: list[str]) -> None:
    """Writes the page of a comparison.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    charts = overlaid(runs)
    numbers = list(range(len(charts)))
    write_atomically(
        out,
        render("compare.html", charts, {}, names=labels(runs), numbers=numbers, tables=found, notes=notes),
    )


def show(found: Sequence[Table]) -> None:
    """Prints the tables."""
    for table in found:
        print(f"\n{table.title}" + (f" ({table.note})" if table.note else ""))
        print_table([table.head, *table.rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares the runs that the command line names."""
    show_control_characters()
    check_datasets()
    parser = argparse.ArgumentParser(
        prog="python -m engine.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, finished or not")
    parser.add_argument("--cards", action="store_true", help="beside what the recipes' cards expect")
    parser.add_argument("--page", type=Path, metavar="OUT.html", help="also write a page with the curves")
    options = parser.parse_args(command_line(arguments))
    try:
        if options.page is not None and options.page.suffix != ".html":
            raise ValueError(f"{options.page} must end in .html: it is the page to write")
        runs, notes = open_runs(options.runs)
        nearest = [nearest_recipe(run) for run in runs]
        if sentence := different_tasks(runs):
            notes.append(sentence)
        notes += [f"{run.name}: {sentence}" for run in runs for sentence in run.missing]
        found = tables(runs, nearest, options.cards)
        if options.page is not None:  # before what may be cut short by `| head`
            write_page(options.page, runs, found, notes)
        with quiet_end():
            for note in notes:
                print(f"note: {note}")
            show(found)
            if options.page is not None:
                print(f"\nwrote {options.page} ({options.page.stat().st_size / 1e6:.1f} MB)")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
