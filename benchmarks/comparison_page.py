"""The table and the plot of a comparison (`comparison.py`), and the page that holds them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atomic import write_atomically

BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
_ROW, _LEFT, _WIDTH = 34, 290, 620


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        title: Its head.
        value: Of one result; None where the objective has no such figure.
        percent: Whether it is shown as a percentage, with its spread over seeds.
    """

    title: str
    value: Callable[[dict[str, Any]], float | None]
    percent: bool = True


def _measured(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda result: result["measured"].get(name)


def _finetuned(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda result: result["finetuned"].get(name)


_MINUTES = Column("minutes", lambda result: result["minutes"], percent=False)
_CLIPS = Column("clips seen", lambda result: result["clips"], percent=False)
_PRETRAINED = (
    Column("R@1 sound → picture", _measured("retrieval_a2v_r1")),
    Column("R@1 picture → sound", _measured("retrieval_v2a_r1")),
    Column("probe, sound", _measured("linear_audio_top1")),
    Column("probe, picture", _measured("linear_visual_top1")),
    Column("probe, both", _measured("linear_audio_visual_top1")),
)
#: Of `objectives.py`.
OBJECTIVES = (
    _MINUTES,
    _CLIPS,
    Column("clips/s", lambda result: result["clips_per_second"], percent=False),
    Column("GB", lambda result: result["peak_bytes"] / 1e9, percent=False),
    *_PRETRAINED,
    Column("fine-tuned, sound", _finetuned("audio")),
    Column("fine-tuned, picture", _finetuned("visual")),
    Column("fine-tuned, both", _finetuned("audio_visual")),
)
#: Of `mavil.py`.
MAVIL = (_MINUTES, _CLIPS, *_PRETRAINED)


def render(results: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """The table in Markdown: a row a candidate, mean ± standard deviation over seeds in per cent."""
    head = ["", *(column.title for column in columns)]
    lines = [_line(head), _line(["---"] + ["--:"] * len(columns))]
    for name, group in by_name(results).items():
        lines.append(_line([name, *(_cell(column, group) for column in columns)]))
    return "\n".join(lines)


def by_name(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of each candidate, in the order of their first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["name"], []).append(result)
    return groups


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(column: Column, group: Sequence[dict[str, Any]]) -> str:
    values = [value for value in map(column.value, group) if value is not None]
    if not values:
        return "–"
    mean = statistics.mean(values)
    if not column.percent:
        return f"{mean:.0f}" if mean >= 10 else f"{mean:.2g}"
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean:.1f}{deviation}"


def plot(results: Sequence[dict[str, Any]]) -> str:
    """An SVG: for each candidate a bar of R@1, mean of both directions, and a dot for each seed."""
    groups = by_name(results)
    found = {name: [_both_ways(result) for result in group] for name, group in groups.items()}
    most = max(max(values) for values in found.values()) or 1.0
    height = _ROW * (len(found) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 80} {height}" '
        'font-family="sans-serif" font-size="14">',
        f'<text x="{_LEFT}" y="20">R@1 on test clips, mean of both directions; dots are seeds</text>',
    ]
    for row, (name, values) in enumerate(found.items(), start=1):
        top, mean = row * _ROW, statistics.mean(values)
        length = _WIDTH * mean / most
        parts.append(f'<text x="{_LEFT - 10}" y="{top + 16}" text-anchor="end">{name}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="22" fill="#9ab8d8"/>')
        parts += [
            f'<circle cx="{_LEFT + _WIDTH * value / most:.1f}" cy="{top + 11}" r="4" fill="#20476f"/>'
            for value in values
        ]
        parts.append(f'<text x="{_LEFT + _WIDTH + 12}" y="{top + 16}">{mean:.1%}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _both_ways(result: dict[str, Any]) -> float:
    return (result["measured"]["retrieval_a2v_r1"] + result["measured"]["retrieval_v2a_r1"]) / 2


def write_page(page: Path, results: Sequence[dict[str, Any]], columns: Sequence[Column]) -> None:
    """Renews the table between a page's marks, and the plot beside the page.

    Raises:
        ValueError: The page has not both marks.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must hold {BEGIN!r} and {END!r} once each: the table goes between them")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    picture = page.with_suffix(".svg")
    write_atomically(picture, plot(results))
    seeds = len({result["seed"] for result in results})
    said = (
        f"Minutes of one processor for pretraining; {seeds} seed{'s' if seeds > 1 else ''}, mean ± standard "
        f"deviation; on test clips, per cent."
    )
    table = render(results, columns)
    body = f"{BEGIN}\n{said}\n\n{table}\n\n![R@1 of each]({picture.name})\n{END}"
    write_atomically(page, before + body + after)
