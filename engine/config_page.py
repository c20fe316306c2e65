"""Writes ``docs/config.md``, every key of both programs, from the dataclasses: ``python -m engine.config_page``."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import docstring_parser

from atomic import write_atomically
from engine.config import PretrainConfig, RunConfig
from engine.objectives.registry import list_objectives, objective_kind
from engine.tasks.finetune_config import RUNS
from home_paths import command_line
from models import ModelConfig, families
from terminal import show_control_characters

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
#: Given by kind of objective and by family of models.
_CHOSEN = ("model", "objective")
_BEGINNING = """# Settings

Every key of the configs of `main_pretrain.py` and `main_finetune.py`. `python -m engine.config_page` writes this page
from the code. Give keys in a YAML file (`--config FILE`), where sections nest, or on the command line as here:
`train.steps=100`. `--print_config` shows what a run would use; unknown keys and impossible combinations are errors.
"""


def page() -> str:
    """The page's text."""
    parts = [_BEGINNING, "## Both programs\n", _table(RunConfig)]
    parts += ["## Pretraining\n", _table(PretrainConfig, RunConfig)]
    for name in list_objectives():
        kind = objective_kind(name)
        if not _is_ours(kind.config):
            continue
        parts += [
            f"### `objective.kind: {name}`\n",
            f"Trains models of {' or '.join(f'`{family}`' for family in kind.families)}; `model.name` is "
            f"`{kind.default_model}` where it is not given.\n",
            _table(kind.config, prefix="objective."),
        ]
    parts.append("## Fine-tuning and evaluation\n")
    for name, config in RUNS.items():
        hints = typing.get_type_hints(config)
        parts += [
            _table(config, RunConfig),
            f"### `objective.kind: {name}`\n",
            _table(hints["objective"], prefix="objective."),
        ]
        if hints["model"] is not ModelConfig:
            parts += [f"The model of `{name}`:\n", _table(hints["model"], prefix="model.")]
    parts.append("## Models\n\n`model.name` is a preset; its family has the keys.\n")
    for family in filter(lambda one: _is_ours(one.config), families()):
        presets = [f"- `{name}`: {purpose}" for name, purpose in family.presets.items()]
        parts += [
            f"### Family `{family.name}`\n",
            "\n".join(presets) + "\n",
            _table(family.config, prefix="model."),
        ]
    return "\n".join(parts)


def _is_ours(config: type) -> bool:
    """Whether it is not of a module outside, which others have registered in this process."""
    return config.__module__.split(".")[0] in ("engine", "models")


def _table(config: type, known: type | None = None, prefix: str = "") -> str:
    """The keys of a dataclass, without those that are the same in ``known``."""
    rows = ["| key | kind | default | what it is |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in _rows(config, known, prefix)]
    return "\n".join(rows) + "\n"


def _rows(config: type, known: type | None, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    hints, texts = typing.get_type_hints(config), descriptions(config)
    before = {field.name: _default(field) for field in fields(known)} if known is not None else {}  # type: ignore[arg-type]
    for field in fields(config):
        name, kind = field.name, hints[field.name]
        if (not prefix and name in _CHOSEN) or (name in before and before[name] == _default(field)):
            continue
        if is_dataclass(kind):
            yield from _rows(typing.cast(type, kind), None, f"{prefix}{name}.")
        else:
            yield f"`{prefix}{name}`", _kind(kind), _default(field), texts.get(name, "")


def descriptions(config: type) -> Mapping[str, str]:
    """What the docstrings of a dataclass and of those it derives from say of its attributes."""
    found: dict[str, str] = {}
    for one in reversed(config.__mro__):
        if is_dataclass(one) and one.__doc__:
            for attribute in docstring_parser.parse(
                one.__doc__, docstring_parser.DocstringStyle.GOOGLE
            ).params:
                found[attribute.arg_name] = " ".join((attribute.description or "").replace("``", "`").split())
    return found


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return _value(field.default)
    if field.default_factory is not MISSING:
        made = field.default_factory()
        return type(made).__name__ if is_dataclass(made) else _value(made)
    return "to be given"


def _value(value: object) -> str:
    if isinstance(value, Enum):
        return f"`{value}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    written = (
        {None: "null", True: "true", False: "false"}.get(value)
        if value is None or isinstance(value, bool)
        else None
    )
    return f"`{value if written is None else written}`" if value != "" else ""


def _kind(kind: Any) -> str:
    """A type for people who write YAML."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member}`" for member in kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(one) for one in arguments)
    if origin in (list, tuple):
        inner = list(dict.fromkeys(_kind(one) for one in arguments if one is not Ellipsis))
        return f"list of {' or '.join(inner)}"
    if is_dataclass(kind):
        return f"mapping of {', '.join(f'`{field.name}`' for field in fields(kind))}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Writes the page."""
    show_control_characters()
    argparse.ArgumentParser(
        prog="python -m engine.config_page", description=(__doc__ or "").splitlines()[0]
    ).parse_args(command_line())
    write_atomically(PAGE, page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
