"""A copy of the code, so that a job in the queue runs what was submitted and not what was edited since."""

from __future__ import annotations

import os
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

from launch.training import TrainingRun

#: The folder that holds the code packages.
ROOT = Path(__file__).resolve().parents[1]

#: Where there is no git to ask: folders that are not looked into, and the files that are copied of the others.
_NOT_CODE = ("runs", "data", "build", "__pycache__", "*.egg-info", "wandb", ".*")
_CODE = ("*.py", "*.yaml", "*.yml", "*.toml", "*.txt", "*.md", "*.typed", "*.html", "*.css", "*.js", "*.sh")
#: Never copied unless git tracks it; lower case, as names are before they are compared.
_SECRET = (
    ".env*", "*.pem", "*.key", "id_*", "*credential*", "*secret*", "*token*", "*passw*", "*api*key*", "*keys*",
    "*[_-]key.*", "*private*", "auth.*", ".netrc", ".ssh", ".aws",
)  # fmt: skip
#: Copied though git does not track it yet.
_UNTRACKED_CODE = ("*.py", "*.yaml", "*.yml")


def take_snapshot(target: Path, root: Path = ROOT) -> None:
    """Copies the code into ``target``: what git tracks and new code, or without git the files that code is made of.

    What may be secret by its name is left out unless git tracks it.

    Args:
        target: A folder that does not exist yet, in one of snapshots alone; may lie inside ``root``.
        root: The tree to copy.
    """
    files = _git_files(root)
    for name in _code_files(root) if files is None else files:
        source, copy = root / name, target / name
        if source.is_file() and target.parent not in source.parents:  # nor earlier snapshots
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def in_snapshot(run: TrainingRun, snapshot: Path, folder: Path, root: Path = ROOT) -> list[str]:
    """The run's command with its script and the code's own config files taken from a snapshot.

    Args:
        run: What to run.
        snapshot: The copy made by `take_snapshot`, or ``root`` itself.
        folder: What relative paths are relative to.
        root: The tree that was copied.
    """

    def moved(path: str) -> str:
        absolute = (folder / path).resolve()
        if not absolute.is_relative_to(root):
            return str(absolute)
        copy = snapshot / absolute.relative_to(root)
        return str(copy if copy.is_file() else absolute)

    arguments, is_file = [], False
    for argument in run.arguments:
        if is_file:
            argument = moved(argument)
        elif argument.startswith(("--config=", "config=")):
            key, _, path = argument.partition("=")
            argument = f"{key}={moved(path)}"
        is_file = argument == "--config"
        arguments.append(argument)
    return [moved(str(run.script)), *arguments]


def _git_files(root: Path) -> list[str] | None:
    """Paths that git tracks, and code that it would; None where ``root`` is not the top of a git tree."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    others = _list_files(root, "--others", "--exclude-standard", "--", *_UNTRACKED_CODE)
    return [*_list_files(root), *(name for name in others if not _may_be_secret(name, root / name))]


def _may_be_secret(name: str, path: Path) -> bool:
    """By its name, or by that of what a link leads to."""
    parts = [*name.split("/"), path.resolve().name]
    return any(_matches(part.lower(), _SECRET) for part in parts)


def _list_files(root: Path, *options: str) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", *options]
    # Names may be any bytes.
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    if done.returncode != 0:
        raise ValueError(
            f"git cannot list the files of {root} for a snapshot (or use snapshot=false): {done.stderr}"
        )
    return [name for name in done.stdout.split("\0") if name]


def _code_files(root: Path) -> list[str]:
    """Paths of code, configs and texts below ``root``, by their names."""
    found = []
    for place, folders, files in os.walk(root):
        at = Path(place)
        folders[:] = [
            name for name in folders if not _matches(name, _NOT_CODE) and not _may_be_secret(name, at / name)
        ]
        names = [name for name in files if _matches(name, _CODE) and not _may_be_secret(name, at / name)]
        found += [str((at / name).relative_to(root)) for name in names]
    return found


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
