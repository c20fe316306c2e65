"""Settings by dotted key: a config as a flat mapping, and what a command line gives before it is parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strict_yaml import load_yaml, load_yaml_file


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, ``{"train": {"steps": 3}}`` as ``{"train.steps": 3}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def given_settings(words: Sequence[str]) -> dict[str, Any]:
    """What a command line and the config files it names say, by dotted key; the last value counts.

    Nothing is checked: a file that can't be read or a misspelt key is left for the parser to report.

    Args:
        words: ``--key value``, ``--key=value``, ``key=value`` and ``--config FILE``.
    """
    given: dict[str, Any] = {}
    for place, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                continue
            value = words[place + 1] if place + 1 < len(words) else ""
        given |= _of_file(Path(value)) if name == "config" else flatten({name: _value(value)})
    return given


def _value(text: str) -> Any:
    try:
        return load_yaml(text)
    except ValueError:
        return text


def _of_file(path: Path) -> dict[str, Any]:
    try:
        values = load_yaml_file(path)
    except (OSError, ValueError):
        return {}
    return flatten(values) if isinstance(values, Mapping) else {}
