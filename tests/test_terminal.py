"""Names, labels and ids of others are printed and logged as text, and command nothing."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest
from support.shards import make_sample
from tqdm import tqdm

from datasets.check import main as check
from datasets.index import index_folder
from datasets.shards.tar import Sample, ShardWriter
from datasets.stats import main as stats
from engine.records.runlog import logger, setup_console
from terminal import show_control_characters, spelt_out

ROOT = Path(__file__).resolve().parents[1]
EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\udc80\rdone"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\udc80\rdone"


def test_control_characters_are_spelt_out() -> None:
    assert spelt_out(EVIL) == SHOWN
    assert spelt_out("línea\n\tзвук 音 🎧") == "línea\n\tзвук 音 🎧"


def test_whatever_is_printed_logged_or_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    show_control_characters()
    show_control_characters()
    print(EVIL, "and", EVIL, end="")
    assert out.getvalue() == f"{SHOWN} and {SHOWN}"
    setup_console(is_main=True)
    logger.warning("left out: %s", EVIL)
    sys.excepthook(ValueError, ValueError(EVIL), None)
    assert err.getvalue().count(SHOWN) == 2
    with tqdm(total=1, desc=EVIL, file=sys.stderr) as bar:
        bar.update()
    assert "\x1b" not in err.getvalue()
    assert err.getvalue().count("\r") >= 2  # a bar is still one line


def test_a_hostile_set_is_shown_as_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set\x1b[31m"
    folder.mkdir()
    with ShardWriter(folder / "shard-000000.tar") as writer:
        sample = make_sample(0)
        labels = ["evil \x1b[2J label", "\x9bm"]
        writer.write(Sample(sample.key, {**sample.metadata, "labels": labels}, sample.members))
    index_folder(folder)
    stats([str(folder)])
    (folder / "shard-000000.tar").unlink()
    with pytest.raises(SystemExit):
        check([str(folder)])
    shown = "".join(capfd.readouterr())
    assert r"set\x1b[31m" in shown
    assert r"evil \x1b[2J label" in shown
    assert not {"\x1b", "\x9b"} & set(shown)


def test_every_program_begins_with_it() -> None:
    """A ``main`` shows control characters first, unless it hands over to one that does."""
    programs = []
    for folder in ("models", "engine", "datasets", "launch", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and node.name in ("main", "run_program"):
                    programs.append(path)
                    assert "show_control_characters()" in ast.unparse(node), path
    assert len(programs) > 15
