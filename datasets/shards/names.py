"""Names and locations that an index or a recipe gives, and what of them may be used, and shown.

A name in an index is the name of a file in the set's folder, and nothing else: no path, no URL, no command.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import quote, urlparse, urlsplit
from urllib.request import url2pathname

from datasets.untrusted import is_text, shown

_LEGAL_NAME = re.compile(r"\w[\w .,+=@()~-]*")
_LEGAL_REMOTE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=@-]*")
_LONGEST = 200
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0]")


def is_file_name(name: object) -> bool:
    """Whether ``name`` is the plain name of a file in a set's folder."""
    return is_text(name, _LONGEST) and bool(_LEGAL_NAME.fullmatch(str(name)))


def is_pipe(location: str) -> bool:
    """Whether a location is a command whose output is the file."""
    return location.lstrip().lower().startswith("pipe:")


def pipe_command(location: str) -> str:
    """The command of a location that is one."""
    return location.lstrip()[len("pipe:") :]


def is_url(location: str) -> bool:
    """Whether ``location`` is fetched, in place of being opened where it is."""
    return is_pipe(location) or urlparse(location).scheme not in ("", "file")


def check_location(location: str) -> None:
    """Raises a ``ValueError`` for a URL that no program should be given."""
    if is_url(location) and not is_pipe(location) and _UNPRINTABLE.search(location):
        raise ValueError(f"{shown(public(location))} holds blanks or control characters, which no URL has")


def join(location: str, name: str) -> str:
    """URL, command or path of the file ``name`` of the set at ``location``.

    Raises:
        ValueError: ``name`` is no plain file name, or one that can't be asked for from afar.
    """
    if not is_file_name(name):
        raise ValueError(f"{shown(name)} is no file name within the set")
    if not is_url(location):
        parsed = urlparse(location)
        folder = url2pathname(parsed.path) if parsed.scheme == "file" else location
        return str(Path(folder) / name)
    if not _LEGAL_REMOTE_NAME.fullmatch(name):
        raise ValueError(
            f"{shown(name)} can't be fetched: names of files at URLs may hold letters, digits and . , + = @ _ -"
        )
    name = shlex.quote(name) if is_pipe(location) else quote(name, safe=",+=@")
    if "{}" in location:
        return location.replace("{}", name)
    return f"{location.rstrip('/')}/{name}"


def public(location: str) -> str:
    """A location without what may be secret: a URL's user, query and fragment, a whole command."""
    if is_pipe(location):
        return "pipe:…"
    if not is_url(location):
        return location
    try:
        parts = urlsplit(location)
    except ValueError:
        return "a URL that can't be read"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")
