"""Recipes and run folders that others made, given to the launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cancel import main as cancel
from launch.config import LaunchConfig
from launch.files import append_line, write_json
from launch.submit import main as submit
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


SHOWN = (
    "JobId=41 JobName=victim UserId=me(1000) GroupId=me(1000) JobState=RUNNING "
    "Command={logs}/41_submission.sh WorkDir=/home/me/code StdErr={logs}/41_0_log.out StdIn=/dev/null "
    "StdOut={logs}/41_0_log.out Power= \n"
)


@pytest.mark.parametrize(
    ("logs", "cancelled"),
    [
        ("run/launch/logs", True), ("launch/logs", True),
        ("other/launch/logs", False), ("run/launch/logs/x", False), (None, False),
    ],
)  # fmt: skip
def test_a_planted_record_cancels_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: str | None, cancelled: bool
) -> None:
    """SLURM itself says where a job's log is; that of a run lies in its own folder, or in that of its sweep."""
    shown = "JobId=41 JobName=victim\n" if logs is None else SHOWN.format(logs=tmp_path / "my sweep" / logs)
    programs = {
        "squeue": "echo 41 RUNNING None",
        "scontrol": f"cat {tmp_path}/shown",
        "scancel": f'echo "$@" >> {tmp_path}/cancelled',
    }
    (tmp_path / "shown").write_text(shown)
    (tmp_path / "bin").mkdir()
    for name, line in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    run = tmp_path / "my sweep" / "run"
    record = {
        "name": "victim",
        "cluster": "slurm",
        "job_id": "41",
        "output_dir": str(run),
        "log": "",
        "code": "",
    }
    write_json(run / "launch" / "run.json", record)
    if cancelled:
        assert cancel([str(run)]) == 0
    else:
        with pytest.raises(SystemExit):
            cancel([str(run)])
    assert (tmp_path / "cancelled").exists() == cancelled


def test_nothing_is_submitted_into_a_folder_of_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "main_pretrain.py").touch()
    (tmp_path / "run").mkdir()
    for link in ("run/launch", "run/launch/logs"):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / "elsewhere")
        words = [
            "--cluster=local",
            "--preflight=false",
            "--snapshot=false",
            "--",
            "main_pretrain.py",
            "output_dir=run",
        ]
        assert submit(words) == 2
        assert f"{link} is a symbolic link" in capsys.readouterr().err
        (tmp_path / link).unlink()
