"""A copy of the code, so that a job in the queue runs what was submitted and not what was edited since."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from launch.training import TrainingRun

#: The folder that holds the code packages.
ROOT = Path(__file__).resolve().parents[1]

#: Not copied where there is no git to ask.
_NOT_CODE = ("runs", "data", "build", ".git", ".venv", "__pycache__", "*.egg-info", ".*_cache")
#: Never copied unless git tracks it.
_SECRET = (".env*", "*.pem", "*.key", "id_*", "*credential*", "*secret*", "*token*", ".netrc", ".ssh", ".aws")
#: Copied though git does not track it yet.
_UNTRACKED_CODE = ("*.py", "*.yaml", "*.yml")


def take_snapshot(target: Path, root: Path = ROOT) -> None:
    """Copies the code into ``target``: what git tracks, new code, or all but data, runs and what may be secret.

    Args:
        target: A folder that does not exist yet; may lie inside ``root``.
        root: The tree to copy.
    """
    files = _git_files(root)
    if files is None:
        shutil.copytree(root, target, ignore=_ignore(target), symlinks=True)
        return
    for name in files:
        source, copy = root / name, target / name
        if source.is_file() and target.parent.parent not in source.parents:
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
    return [*_list_files(root), *(name for name in others if not _may_be_secret(name))]


def _may_be_secret(name: str) -> bool:
    return any(fnmatch(part, pattern) for part in name.lower().split("/") for pattern in _SECRET)


def _list_files(root: Path, *options: str) -> list[str]:
    command = ["git", "-C", str(root), "ls-files", "-z", *options]
    # Names may be any bytes.
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    if done.returncode != 0:
        raise ValueError(
            f"git cannot list the files of {root} for a snapshot (or use snapshot=false): {done.stderr}"
        )
    return [name for name in done.stdout.split("\0") if name]


def _ignore(target: Path):
    by_name = shutil.ignore_patterns(*_NOT_CODE, *_SECRET)

    def ignored(folder: str, names: Sequence[str]) -> set[str]:
        return by_name(folder, list(names)) | {
            n for n in names if Path(folder, n) in (target, *target.parents)
        }

    return ignored
