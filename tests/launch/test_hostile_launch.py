"""Recipes and run folders that others made, given to the launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cancel import main as cancel
from launch.config import LaunchConfig
from launch.files import append_line, write_json
from launch.torchrun import process_start
from launch.training import plan_runs


@pytest.mark.parametrize(
    "settings",
    [
        {"comment": "a\nb"},
        {"partition": "a\rb"},
        {"setup": ["x\ny"]},
        {"sbatch": {"a\n": 1}},
        {"exclude": "\u2028"},
    ],
)
def test_no_setting_becomes_a_line_of_the_script(settings: dict) -> None:
    with pytest.raises(ValueError, match="holds a line break or another control character"):
        LaunchConfig(**settings)


def test_no_path_becomes_a_line_of_the_script(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "given.yaml").write_text('output_dir: "runs/a\\ntouch marker\\n#"\n')
    for arguments in (["--config", "given.yaml"], ["output_dir=a\nb"]):
        with pytest.raises(ValueError, match=r"(output_dir|command): .* holds a line break"):
            plan_runs(["train.py", *arguments], "name", [], [], tmp_path)


def test_a_planted_record_ends_no_other_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        run = tmp_path / "runs" / "given"
        record = {
            "name": "x", "cluster": "local", "job_id": str(process.pid), "output_dir": str(run), "log": "", "code": "",
            "started": process_start(process.pid),
        }  # fmt: skip
        write_json(run / "launch" / "run.json", record)
        assert cancel([str(run)]) == 0
        for wrong in ({"job_id": "-1"}, {"job_id": "--user=me"}, {"output_dir": str(tmp_path)}):
            (run / "launch" / "run.json").write_text(json.dumps(record | wrong))
            with pytest.raises(SystemExit):
                cancel([str(run)])
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_the_launcher_writes_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run.json").symlink_to(victim)
    write_json(tmp_path / "run.json", {})
    (tmp_path / "history.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        append_line(tmp_path / "history.jsonl", {})
    (tmp_path / "folder").mkdir()
    (tmp_path / "launch").symlink_to(tmp_path / "folder")
    with pytest.raises(ValueError, match="is a symbolic link"):
        write_json(tmp_path / "launch" / "run.json", {})
    assert victim.read_text() == "precious"
    assert not list((tmp_path / "folder").iterdir())
