"""All programs spell their options alike: ``--num_workers``, ``--batch_size``, ``--format``, with underscores."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.convert import main as convert

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("datasets", "models", "engine", "launch", "benchmarks", "examples")
SPELLING = re.compile(r"--[a-z][a-z0-9]*(_[a-z0-9]+)*")
#: Other words for what has one name already.
SYNONYMS = {
    "--workers": "--num_workers", "--batch": "--batch_size", "--form": "--format", "--to": "--format",
    "--output": "--out", "--cfg": "--config", "--lr": "optimizer.lr",
}  # fmt: skip
#: An earlier documented spelling that is still taken, and by which program.
KEPT = {("models/convert.py", "--to")}


def options() -> Iterator[tuple[str, str]]:
    """Every option of every program: the file that defines it, and how it is spelt."""
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr == "add_argument":
                words = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                for word in words:
                    if isinstance(word, str) and word.startswith("-"):
                        yield str(path.relative_to(ROOT)), word


def test_options_are_spelt_alike() -> None:
    found = set(options())
    assert len(found) > 80
    assert {word for _, word in found} >= {"--num_workers", "--batch_size", "--format", "--config"}
    odd = sorted((file, word) for file, word in found if not SPELLING.fullmatch(word))
    assert not odd, "options have underscores, two dashes and no short forms"
    synonyms = sorted((file, word) for file, word in found - KEPT if word in SYNONYMS)
    assert not synonyms, {word: SYNONYMS[word] for _, word in synonyms}


def test_the_documented_spelling_of_earlier_versions_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        convert([str(tmp_path / "absent.pth"), str(tmp_path / "out.pth"), "--to", "published"])
    message = capsys.readouterr().err
    assert "--to is now --format published" in message
    assert "there is no such file" in message
