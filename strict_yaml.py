"""YAML in which no key is given twice: YAML's own loaders take the last of two and say nothing.

Config files and launch files are read with it (``use_strict_yaml``), so a second ``train:`` block is an error that
names both lines, as is ``train.steps:`` beside a block ``train:`` with ``steps:``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from jsonargparse import get_loader, set_loader

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_Key = tuple[str, ...]


def use_strict_yaml() -> None:
    """Makes jsonargparse refuse keys that are given twice, in values on the command line too."""
    plain = get_loader("yaml")
    if getattr(plain, "strict", False):
        return

    def load(text: str) -> object:
        check_keys(text)
        return plain(text)

    load.strict = True  # type: ignore[attr-defined]
    set_loader("yaml", load, exceptions=(yaml.YAMLError, ValueError))


def check_files(arguments: Sequence[str]) -> None:
    """Checks every ``--config FILE`` of a command line, so that errors name the file.

    Raises:
        ValueError: Names the file, the key and both lines, or says that it is not UTF-8.
    """
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        file = Path(value if equals else arguments[i + 1] if i + 1 < len(arguments) else "")
        if name != "--config" or not file.is_file():
            continue
        content = file.read_bytes()
        if content[:2] in _UTF16_MARKS:
            raise ValueError(f"{file} is UTF-16; save it as UTF-8")
        try:
            check_keys(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
        except yaml.YAMLError:
            continue  # said where it is parsed
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def check_keys(text: str) -> None:
    """Refuses YAML that gives a key twice.

    Raises:
        ValueError: Names the key and both lines.
    """
    seen: dict[_Key, int] = {}
    for key, line in _keys(yaml.compose(text, Loader=yaml.SafeLoader), (), ()):
        if key in seen:
            name = ".".join(key)
            raise ValueError(
                f"key {name!r} is given twice, in lines {seen[key]} and {line}: keep one of them"
            )
        seen[key] = line


def _keys(node: yaml.Node | None, above: _Key, nodes: tuple[int, ...]) -> Iterator[tuple[_Key, int]]:
    """Every key of a document by its path, with its line; what an alias repeats is no key of its own place."""
    if id(node) in nodes:
        return  # an alias to what it stands in
    nodes = (*nodes, id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _keys(item, (*above, str(i)), nodes)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            place = (*above, *key.value.split("."))
            yield place, key.start_mark.line + 1
            yield from _keys(value, place, nodes)


def contradictions(overrides: Sequence[str]) -> Iterator[str]:
    """What is given twice among ``--key value``, ``--key=value`` and ``key=value``, with different values.

    Args:
        overrides: A command line.

    Yields:
        A sentence for each: which value holds.
    """
    given: dict[str, str] = {}
    for i, word in enumerate(overrides):
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or i + 1 == len(overrides):
                continue
            value = overrides[i + 1]
        if name == "config":
            continue
        for other, earlier in given.items():
            within = name.startswith(f"{other}.") or other.startswith(f"{name}.")
            if (other == name and earlier != value) or within:
                yield f"{other}={earlier} and {name}={value} are both given; the later one holds"
        given[name] = value
