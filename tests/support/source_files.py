"""The project's own code, without its tests."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("models", "datasets", "engine", "launch", "benchmarks", "examples")


def sources() -> list[Path]:
    """Every file of it."""
    found = [*ROOT.glob("*.py"), *(path for name in _FOLDERS for path in (ROOT / name).rglob("*.py"))]
    return sorted(path for path in found if path.name != "setup.py")
