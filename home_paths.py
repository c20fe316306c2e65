"""``~`` and ``$HOME`` in paths, wherever a shell did not replace them: in files, and after ``key=``."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from enum import Enum
from typing import Any

# At the beginning, or after `key=` or the `timm:NAME:` of weights.
_TILDE = re.compile(r"^((?:-{0,2}[\w.]+=)?(?:timm:[^:]+:)?)~(?=/|$)")
_HOME = re.compile(r"\$(?:HOME(?!\w)|\{HOME\})")


def expand_home(text: str) -> str:
    """The text with ``~`` at the beginning of a path, and ``$HOME``, replaced by the user's folder."""
    home = os.path.expanduser("~")
    return _HOME.sub(lambda _: home, _TILDE.sub(lambda match: match[1] + home, text))


def expand_values(value: Any) -> Any:
    """`expand_home` of every text in lists, dictionaries and namespaces; members of enumerations are no texts."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return expand_home(value)
    if isinstance(value, list | tuple):
        return type(value)(expand_values(item) for item in value)
    if isinstance(value, Namespace):  # jsonargparse's are of this kind
        return type(value)(**{key: expand_values(item) for key, item in vars(value).items()})
    if isinstance(value, dict):
        return {key: expand_values(item) for key, item in value.items()}
    return value


def command_line(arguments: Sequence[str] | None = None) -> list[str]:
    """The words of a command line, expanded; every program begins with it.

    Args:
        arguments: The words; None for this process's own.
    """
    return [expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
