"""Damaged files of a run cost a line about that run, and never the lines about the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from atomic import open_to_append
from launch.files import append_line, last_line, write_json
from launch.follow import _exit_code
from launch.progress import progress
from launch.registry import Submission, find_submissions
from launch.status import describe, main

STATUS, HISTORY = "status.json", "launch/history.jsonl"


def make_run(folder: Path, name: str) -> Path:
    run = folder / "runs" / name
    Submission(name, "local", "1", str(run), "", "").write()
    write_json(run / STATUS, {"state": "running", "step": 3, "total_steps": 9})
    append_line(run / HISTORY, {"action": "restart", "ended": 1.0, "message": "again"})
    return run


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (STATUS, b"{", "is not JSON"),
        (STATUS, b"[" * 100_000, "is not JSON"),
        (STATUS, b"\xff", "is not JSON"),
        (STATUS, b"[]", "should hold a JSON object"),
        (STATUS, b'{"step": null}', "step is 'None', no count"),
        (STATUS, b'{"total_steps": 1e999}', "total_steps is 'inf', no count"),
        (STATUS, b'{"evaluated": "2"}', "evaluated is '2', no count"),
        (STATUS, None, "is no regular file"),
        (HISTORY, None, "is no regular file"),
        (HISTORY, b'{"action": "fin', "step 3/9"),
        (HISTORY, b"7\n[]\n", "step 3/9"),
        (HISTORY, b'{"action": "finish", "ended": "soon"}\n', "launcher    finish: None"),
        ("launch/run.json", b"{", "is not JSON"),
        ("launch/run.json", b'{"output_dir": 5}', "is no record of a submission"),
    ],
)
def test_a_damaged_run_is_a_line_and_the_others_are_shown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: bytes | None,
    said: str,
) -> None:
    run = make_run(tmp_path, "bad")
    make_run(tmp_path, "good")
    (record,) = find_submissions("bad", tmp_path)
    (run / file).unlink()
    if content is None:
        os.mkfifo(run / file)
    else:
        (run / file).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert any(line.startswith("good ") and "step 3/9" in line for line in lines)
    if file == "launch/run.json":
        assert said in "".join(lines)
    else:
        assert said in describe(record, "GONE", in_full=True)
        assert _exit_code(run) == (0 if b"finish" in (content or b"") else 1)
        assert progress(run) == (-1, 0)


@pytest.mark.parametrize("torn", [b"", b'{"action": "fin', b"null\n", b'{"action": 1}'])
def test_the_line_after_a_torn_one_is_whole(tmp_path: Path, torn: bytes) -> None:
    path, first, second = tmp_path / "history.jsonl", {"action": "a"}, {"action": "b"}
    append_line(path, first)
    with path.open("ab") as file:
        file.write(torn)
    found: dict[str, Any] | None = last_line(path)
    assert found == first
    append_line(path, second)
    assert last_line(path) == second
    assert path.read_bytes().splitlines()[-1] == b'{"action": "b"}'


def test_nothing_is_appended_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="is no regular file"):
        open_to_append(tmp_path / "metrics.jsonl")
