"""The files that tools and readers of a repository look for."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]


def test_the_licence_is_named_alike() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert 'license="Apache-2.0"' in (ROOT / "setup.py").read_text()
    assert "Apache-2.0" in (ROOT / "README.md").read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["license"], citation["cff-version"]) == ("Apache-2.0", "1.2.0")
    assert f'version="{citation["version"]}"' in (ROOT / "setup.py").read_text()


def test_every_package_is_typed() -> None:
    packages = find_packages(str(ROOT), include=["models", "engine", "datasets", "launch"])
    assert len(packages) == 4
    assert all((ROOT / name / "py.typed").is_file() for name in packages)


def test_hooks_fetch_nothing_and_run_what_make_check_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    entries = [hook["entry"] for hook in repo["hooks"]]
    for tool in re.findall(
        r"\$\(BIN\)/((?:ruff|pyright)(?: check| format)?)", (ROOT / "Makefile").read_text()
    ):
        assert any(entry.startswith(f".venv/bin/{tool}") for entry in entries), tool


def test_the_changelog_keeps_its_headings() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings[:2] == ["# Changelog", "## [Unreleased]"]
    kinds = {line.removeprefix("### ") for line in headings if line.startswith("### ")}
    assert kinds
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for number, line in enumerate(lines):
        if line.startswith("### "):
            assert lines[number + 2].startswith("- "), line
