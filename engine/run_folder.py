"""What a run's folder says of the run, read as data: bounded, no link followed, whatever is wrong said and left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from atomic import refuse_links
from datasets.untrusted import finite_number, is_writable, parse_json, read_bounded
from engine.records.attempts import NAME as ATTEMPTS
from engine.records.status import NAME as STATUS
from strict_yaml import load_yaml

T = TypeVar("T")

_LARGEST_CONFIG, _LARGEST_RECORDS, _LARGEST_EVALUATION = 1 << 20, 1 << 28, 1 << 26
#: Names of metrics that are read of a run, and attempts, at most.
_MOST_NAMES, _MOST_ATTEMPTS = 400, 1000
_PICTURE = re.compile(r"(.+)_(\d{8})\.png")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder in memory.

    Attributes:
        path: The folder.
        config: ``config.yaml``; empty where there is none.
        records: The numbers of ``metrics.jsonl``, ascending by step, each with ``step``; without non-finite values.
        status: ``status.json``.
        attempts: ``attempts.jsonl``: each time that it was begun or resumed.
        skipped: Steps (1-based) whose batch was skipped.
        evaluations: ``evaluation/NAME/metrics.json`` by name.
        pictures: ``pictures/NAME_STEP.png`` by name and step.
        films: ``films/*.mp4``.
        missing: What could not be read, in sentences.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, float]] = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, dict[int, Path]] = field(default_factory=dict)
    films: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Reads a folder.

        Raises:
            ValueError: It is no run's folder, or holds symbolic links.
        """
        if not path.is_dir():
            raise ValueError(f"{path} is no folder")
        if not any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "evaluation")):
            raise ValueError(f"{path} is no run: it has none of config.yaml, metrics.jsonl and evaluation/")
        refuse_links(path, skip=("launch", "wandb"))
        missing: list[str] = []

        def read(name: str, limit: int, parse: Callable[[bytes], T], empty: T, needed: bool = False) -> T:
            try:
                return parse(read_bounded(path / name, limit))
            except FileNotFoundError:
                if needed:
                    missing.append(f"{name} is not there")
            except (OSError, ValueError) as error:
                missing.append(f"{name} can't be read: {error}")
            return empty

        return cls(
            path,
            config=read("config.yaml", _LARGEST_CONFIG, _mapping_yaml, {}, needed=True),
            records=read("metrics.jsonl", _LARGEST_RECORDS, _records, [], needed=True),
            status=read(STATUS, _LARGEST_CONFIG, _mapping_json, {}, needed=True),
            attempts=read(ATTEMPTS, _LARGEST_CONFIG, _attempts, []),
            skipped=read("skipped_steps.json", _LARGEST_CONFIG, _skipped, []),
            evaluations={
                name: found
                for name in _names(path / "evaluation")
                if (found := read(f"evaluation/{name}/metrics.json", _LARGEST_EVALUATION, _mapping_json, {}))
            },
            pictures=_pictures(path / "pictures"),
            films=sorted(path.glob("films/*.mp4")),
            missing=missing,
        )

    @property
    def name(self) -> str:
        """The folder's name, with its parent's where that tells more."""
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def pretrains(self) -> bool:
        """Whether it is a pretraining run; those on labelled clips have an evaluation at their end."""
        return "objective" in self.config and "evaluation" not in self.config

    def value(self, key: str, default: Any = None) -> Any:
        """A value of the config by its dotted key."""
        found: Any = self.config
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return default
            found = found[part]
        return found

    @property
    def batch(self) -> int:
        """Clips to a step."""
        size = self.value("train.parallel.global_batch_size", 1)
        return size if isinstance(size, int) and size > 0 else 1

    @property
    def step(self) -> int:
        """The last step that anything is known of."""
        said = self.status.get("step")
        steps = [int(record["step"]) for record in self.records[-1:]]
        return max([*steps, said if isinstance(said, int) else 0])

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        return next((record[name] for record in reversed(self.records) if name in record), None)

    def attempt(self, name: str, default: Any = None) -> Any:
        """What the newest attempt says."""
        return self.attempts[-1].get(name, default) if self.attempts else default


def training_hours(run: RunFolder) -> dict[int, float]:
    """By step, hours that training has taken up to it: steps by the samples per second logged with them.

    Evaluations, checkpoints, starts, and steps that were lost and taken again are not in it.
    """
    hours, last, found = 0.0, 0, {0: 0.0}
    for record in run.records:
        rate, step = record.get("train/samples_per_second", 0.0), int(record["step"])
        if rate > 0 and step > last:
            hours += (step - last) * run.batch / rate / 3600
            last = step
            found[step] = hours
    return found


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{prefix}{key}"
        found |= flatten(value, f"{inner}.") if isinstance(value, dict) and value else {inner: value}
    return found


def _mapping_yaml(content: bytes) -> dict[str, Any]:
    found = load_yaml(content.decode())
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError("it is no mapping of keys")
    str(found)  # which fails for an integer of so many digits that nothing can show it
    return found


def _mapping_json(content: bytes) -> dict[str, Any]:
    found = parse_json(content)
    if not isinstance(found, dict) or not is_writable(found):
        raise ValueError("it is no JSON object")
    return found


def _lines(content: bytes) -> list[dict[str, Any]]:
    """Whole lines of JSON objects; a line that a killed process left torn is none."""
    found = []
    for line in content.decode(errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and finite_number(record.get("step"), 0, 1e12):
            found.append(record)
    return found


def _records(content: bytes) -> list[dict[str, float]]:
    names: dict[str, None] = {}
    found = []
    for line in _lines(content):
        record = {name: float(x) for name, x in line.items() if finite_number(x, -1e300, 1e300)}
        names |= dict.fromkeys(record)
        found.append(record)
    known = set(list(names)[:_MOST_NAMES]) | {"step"}
    found = [{name: x for name, x in record.items() if name in known} for record in found]
    return sorted(found, key=lambda record: record["step"])


def _attempts(content: bytes) -> list[dict[str, Any]]:
    return [line for line in _lines(content) if is_writable(line)][-_MOST_ATTEMPTS:]


def _skipped(content: bytes) -> list[int]:
    found = parse_json(content)
    if not isinstance(found, list) or not all(finite_number(x, 0, 1e12) for x in found):
        raise ValueError("it is no list of steps")
    return [int(x) + 1 for x in found]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if (match := _PICTURE.fullmatch(path.name)) is not None:
            found.setdefault(match[1], {})[int(match[2])] = path
    return found
