"""What a run is: its recipe, data, code, devices and cost, as rows of text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from datasets.shards.manifest import ShardIndex
from datasets.shards.names import is_url, public
from engine.recipes.nearest import Nearest
from engine.run_folder import RunFolder, training_hours


@dataclass(frozen=True)
class Fact:
    """A row.

    Attributes:
        name: What it is.
        text: What it says.
    """

    name: str
    text: str


def facts(run: RunFolder, nearest: Nearest | None) -> list[Fact]:
    """What a run is and has cost."""
    rows = [Fact("State", state(run)), Fact("What", what(run)), Fact("Recipe", recipe(nearest))]
    rows += [Fact(f"{name} data", text) for name, text in data(run)]
    rows += [Fact("Cost", cost(run)), Fact("Code and devices", devices(run))]
    if run.skipped:
        steps = ", ".join(map(str, run.skipped[-20:]))
        rows.append(Fact("Skipped steps", f"{len(run.skipped)}, whose numbers were not finite: {steps}"))
    unreadable = run.last("train/unreadable_clips")
    if unreadable:
        rows.append(Fact("Unreadable clips", f"{unreadable:,.0f} in this attempt"))
    return [row for row in rows if row.text]


def state(run: RunFolder) -> str:
    """How the run stands, and when that was."""
    said = run.status.get("state") or "unknown: there is no status.json"
    phase, message, total = (run.status.get(key) for key in ("phase", "message", "total_steps"))
    path = run.path / "metrics.jsonl"
    when = f"; last record {_time(path.stat().st_mtime)}" if path.is_file() else ""
    steps = f", step {run.step:,}" + (f" of {total:,}" if isinstance(total, int) and total else "")
    return f"{said}{f' ({phase})' if phase else ''}{steps}{when}{f'. {message}' if message else ''}"


def what(run: RunFolder) -> str:
    """Program, model and size."""
    if not run.config:
        return ""
    program = "pretraining" if run.pretrains else "fine-tuning"
    modalities = f" ({run.value('objective.modalities')})" if run.value("objective.modalities") else ""
    parameters = run.attempt("parameters")
    size = f", {parameters / 1e6:,.1f} million parameters" if isinstance(parameters, int) else ""
    start = run.value("init") or "random weights"
    kind = run.value("objective.kind", "")
    task = f"{program} of {run.value('model.name')}: {kind}{modalities}"
    return f"{task}{size}; starts from {start}; seed {run.value('seed')}"


def recipe(nearest: Nearest | None) -> str:
    """The recipe that the run follows."""
    if nearest is None:
        return "no recipe of configs/ is of this objective and model"
    count = len(nearest.changed)
    changed = f"{count} setting{'s' * (count > 1)} changed" if count else "as it stands"
    return f"configs/{nearest.path.name}, {changed}"


def data(run: RunFolder) -> list[tuple[str, str]]:
    """The sets of a run, with counts and rejects where they are on this machine."""
    train = run.value("data.train")
    parts = train if isinstance(train, list) else [train]
    paths = [("Training", part.get("path") if isinstance(part, dict) else part) for part in parts]
    paths += [("Held-out", run.value("data.val")), ("Evaluated", run.value("evaluation.shards"))]
    return [(name, describe_set(path)) for name, path in paths if isinstance(path, str)]


def describe_set(path: str) -> str:
    """A set in a line."""
    if is_url(path):
        return public(path)
    try:
        index = ShardIndex.load(path)
    except (ValueError, OSError) as error:
        return f"{path}: not readable here ({error})"
    labels = f", {len(index.labels)} classes" if index.labels else ""
    hours = f", {index.duration_seconds / 3600:,.1f} h" if index.duration_seconds else ""
    more = "s" * (len(index.shards) != 1)
    rejects = "; rejects not known" if index.rejects is None else f"; {index.rejects}"
    if index.rejects is not None and not index.rejects.total:
        rejects = "; none rejected"
    return f"{path}: {index.samples:,} clips in {len(index.shards)} shard{more}{hours}{labels}{rejects}"


def cost(run: RunFolder) -> str:
    """Hours, samples and FLOPs."""
    hours = list(training_hours(run).values())[-1]
    samples = run.step * run.batch
    words = [f"{duration(hours)} of training", f"{samples:,} samples"]
    world, flops = run.attempt("world_size"), run.attempt("flops_per_sample")
    if isinstance(world, int) and world > 1:
        words[0] += f" on {world} devices ({hours * world:,.2f} device hours)"
    if isinstance(flops, int | float):
        words.append(f"{flops * samples:.3g} FLOPs ({flops / 1e9:.3g} GFLOP a sample)")
    return ", ".join(words) if run.records else ""


def devices(run: RunFolder) -> str:
    """Code version and devices of the newest attempt."""
    if not run.attempts:
        return "not known: the run has no attempts.jsonl"
    code = run.attempt("code") or "unknown (no git)"
    count = len(run.attempts)
    attempts = "begun once" if count == 1 else f"begun and resumed {count} times"
    return (
        f"{code}; {run.attempt('world_size')} × {run.attempt('device')}; torch {run.attempt('torch')}; "
        f"precision {run.value('train.parallel.precision')}; {attempts}"
    )


def attempt_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """When, from which step, where and with which code the run was begun and resumed."""
    keys: tuple[str, ...] = ("time", "step", "world_size", "device", "code")
    return [tuple(_text(line.get(key)) for key in keys) for line in run.attempts[-50:]]


def duration(hours: float) -> str:
    """Hours for people."""
    return f"{hours:,.1f} h" if hours >= 2 else f"{60 * hours:.1f} min"


def _text(value: Any) -> str:
    return str("" if value is None else value)[:80]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
