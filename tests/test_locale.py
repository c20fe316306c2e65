"""Texts are UTF-8 whatever the locale says, and what it lacks can be printed all the same."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from support.shards import make_sample
from support.source_files import ROOT, sources

from datasets.index import index_folder
from datasets.shards.tar import ShardWriter

_TEXT_MODE = re.compile(r"[rwaxt+]+")


def _mode(call: ast.Call, place: int) -> str:
    """The mode that a call of ``open`` is given, ``r`` for none; empty for what can't be one."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    given += call.args[place : place + 1]
    if not given:
        return "r" if place or not call.args else ""
    return str(given[0].value) if isinstance(given[0], ast.Constant) else ""


def _without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines in which text is read or written in the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        if ast.unparse(node.func) == "av.open":
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
        if name in ("open", "fdopen"):
            method = isinstance(node.func, ast.Attribute) and name == "open"
            bad = _TEXT_MODE.fullmatch(_mode(node, 0 if method else 1)) is not None
        else:
            bad = name in ("read_text", "write_text") and len(node.args) < 1 + (name == "write_text")
            bad |= bool(texts & {"text", "universal_newlines"})
        if bad:
            yield node.lineno


def test_text_is_read_and_written_in_a_named_encoding():
    for code in (
        "open(a)",
        "p.open()",
        "p.open('w')",
        "p.read_text()",
        "p.write_text(t)",
        "run(c, text=True)",
    ):
        assert list(_without_encoding(ast.parse(code))) == [1], code
    for code in ("open(a, 'rb')", "av.open(a)", "p.read_text(encoding='utf-8')", "Path.open(p, 'ab')"):
        assert list(_without_encoding(ast.parse(code))) == [], code
    bad = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line in _without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not bad


def in_ascii_locale(*words: str) -> subprocess.CompletedProcess[bytes]:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    environment = {
        name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONIOENCODING")
    }
    return subprocess.run([sys.executable, *words], env=environment | ascii_only, capture_output=True)


def test_config_files_are_utf_8(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("name: Élan  # ±\n", encoding="utf-8-sig")
    code = (
        "import sys; from launch.config import launch_parser; "
        "print(ascii(launch_parser().parse_args(['--config', sys.argv[1]]).name))"
    )
    found = in_ascii_locale("-c", code, str(tmp_path / "c.yaml"))
    assert found.stdout == b"'\\xc9lan'\n", found.stderr.decode()


def test_a_set_can_be_looked_at_in_an_ascii_locale(tmp_path: Path):
    folder = tmp_path / "sét"
    folder.mkdir()
    sample = make_sample(0)
    with ShardWriter(folder / "a.tar") as writer:
        writer.write(replace(sample, metadata=sample.metadata | {"labels": ["Élan"]}))
    index_folder(folder)
    found = in_ascii_locale("-m", "datasets.stats", str(folder))
    assert found.returncode == 0, found.stderr.decode()
    assert rb"\xc9lan" in found.stdout
    assert (folder / "contact_sheet.png").is_file()
