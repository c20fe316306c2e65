"""YAML of bounded size in which no key is given twice: YAML's own loaders take the last of two and say nothing.

Aliases let a few lines stand for gigabytes, and brackets in brackets end the interpreter: both are counted before
anything is made of a text. All YAML is read through this module.

Config files and launch files are read with it (``use_strict_yaml``), so a second ``train:`` block is an error that
names both lines, as is ``train.steps:`` beside a block ``train:`` with ``steps:``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_Key = tuple[str, ...]

LARGEST = 1 << 18  #: Bytes of a file or a text.
DEEPEST = 40  #: Mappings and lists within each other.
MOST_NODES = 20_000  #: Values, with all that aliases repeat.


def load_yaml(text: str) -> Any:
    """What YAML says: plain values alone.

    Raises:
        ValueError: It is none, too large or too deep, or stands for too many values.
    """
    try:
        _check_shape(text)
        return yaml.safe_load(text)
    except ValueError:
        raise
    # Tagged values that are none of their kind, such as `!!bool x`, end in all sorts of errors.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"it is no YAML that can be read: {error or type(error).__name__}") from error


def load_yaml_file(path: Path) -> Any:
    """The same of a file, in UTF-8.

    Raises:
        ValueError: As of `load_yaml`; names the file.
        OSError: It can't be read.
    """
    try:
        return load_yaml(_read(path).decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> bytes:
    """A file's bytes; a FIFO, which would be waited for, has none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than the {LARGEST} bytes that YAML may have here")
    return content


def _check_shape(text: str) -> None:
    """Counts values and depth from the parser's events, of which none is kept."""
    if len(text) > LARGEST:
        raise ValueError(f"it is longer than the {LARGEST} characters that YAML may have here")
    sizes: dict[str, int] = {}  # of what anchors name
    depths: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count before it
    count = deepest = 0
    starts: list[int] = []  # the deepest level seen within each open node
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(
                    f"line {line}: the alias *{event.anchor} has no value before it, or is part of it"
                )
            count += sizes[event.anchor]
            deepest = len(open_nodes) + depths[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            deepest = len(open_nodes) + 1
            if event.anchor:
                sizes[event.anchor], depths[event.anchor] = 1, 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            starts.append(len(open_nodes))
            count += 1
            deepest = len(open_nodes)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            reached = starts.pop()
            if anchor:
                sizes[anchor], depths[anchor] = count - before, reached - len(open_nodes)
            deepest = reached
        if starts:
            starts[-1] = max(starts[-1], deepest)
        if count > MOST_NODES or deepest > DEEPEST:
            what = f"{MOST_NODES} values" if count > MOST_NODES else f"{DEEPEST} levels"
            raise ValueError(f"line {line}: it has more than {what}, aliases included")


def use_strict_yaml() -> None:
    """Makes jsonargparse refuse keys that are given twice, in values on the command line too."""
    plain = get_loader("yaml")
    if getattr(plain, "strict", False):
        return

    def load(text: str) -> object:
        check_keys(text)
        try:
            return plain(text)
        except (LookupError, AttributeError, TypeError, OverflowError) as error:
            raise ValueError(f"it is no YAML that can be read: {error}") from error

    load.strict = True  # type: ignore[attr-defined]
    set_loader("yaml", load, exceptions=(yaml.YAMLError, ValueError))


class ConfigParser(ArgumentParser):
    """Reads config files as UTF-8, whatever the locale says."""

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """The settings in a file; see jsonargparse."""
        if not Path(path).is_file():  # such as a shell's <(command)
            return super().parse_path(path, *args, **kwargs)
        text = _read(Path(path)).decode("utf-8-sig")
        return self.parse_string(text, os.path.basename(path), *args, **kwargs)


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
        try:
            content = _read(file)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
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
        ValueError: Names the key and both lines, or says that the text is too large or too deep.
    """
    _check_shape(text)
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

    The values are not shown: they may hold a secret, such as a signed URL.

    Args:
        overrides: A command line.

    Yields:
        A sentence for each: which one holds.
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
            if other == name and earlier != value:
                yield f"{name} is given twice, with different values; the later one holds"
            elif within:
                yield f"{other} and {name} are both given; the later one holds"
        given[name] = value
