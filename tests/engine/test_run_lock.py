"""One run to a folder: live ones are refused by name, dead ones taken over, whatever machine they ran on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import environment

from engine.parallel import world as worlds
from engine.parallel.world import check_slurm_tasks
from engine.training import run_lock
from engine.training.run_lock import LOCK_NAME, RunInUseError, RunLock

HOLD = """
import sys, time
from pathlib import Path
from engine.training.run_lock import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def hold(run: Path) -> subprocess.Popen[str]:
    """A process that holds a run's folder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_live_runs_folder_is_refused_and_a_killed_ones_taken_over(tmp_path: Path, caplog):
    run = tmp_path / "run"
    with hold(run) as holder:
        with pytest.raises(RunInUseError, match=f"in use by process {holder.pid} on {os.uname().nodename}"):
            RunLock(run)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lock = RunLock(run)
    assert f"taken over from process {holder.pid}" in caplog.text
    (run / "status.json").touch()
    lock.release()
    assert sorted(path.name for path in run.iterdir()) == ["status.json"]


def test_a_process_id_that_was_given_to_another_process_is_no_life(tmp_path: Path):
    lock = RunLock(tmp_path)
    content = json.loads((tmp_path / LOCK_NAME).read_text())
    (tmp_path / LOCK_NAME).write_text(
        json.dumps(content | {"started": content["started"] - 1, "token": "other"})
    )
    RunLock(tmp_path).release()
    lock.release()


@pytest.mark.parametrize("beats", [True, False])
def test_another_machines_run_is_known_by_its_beat(tmp_path: Path, monkeypatch, beats: bool):
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05 if beats else 60.0)
    lock = RunLock(tmp_path)
    machine = run_lock._machine()
    monkeypatch.setattr(run_lock, "_machine", lambda: f"{machine} another")
    if beats:
        with pytest.raises(RunInUseError, match="in use by process"):
            RunLock(tmp_path)
    else:
        RunLock(tmp_path).release()
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}'])
def test_a_lock_that_means_nothing_locks_nothing(tmp_path: Path, content: bytes):
    (tmp_path / LOCK_NAME).write_bytes(content)
    RunLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_hard_links_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    lock = RunLock(tmp_path)
    with pytest.raises(RunInUseError, match=f"in use by process {os.getpid()}"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path):
    RunLock(tmp_path / "a" / "b").release()
    assert not (tmp_path / "a").exists()


def test_several_tasks_that_know_nothing_of_each_other_are_refused():
    several = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}
    with pytest.raises(ValueError, match=r"SLURM runs 2 tasks here.*launch\.submit.*torchrun"):
        check_slurm_tasks(several, "main_pretrain.py")
    for fine in (
        {},
        several | {"RANK": "1"},
        several | {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "8"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
    ):
        check_slurm_tasks(fine, "main_pretrain.py")


def test_waiting_for_a_rank_that_never_comes_is_said(monkeypatch, caplog):
    names = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(worlds, "_JOIN_SECONDS", 0.01)
    monkeypatch.setattr(worlds.logging.getLogger("earsight"), "propagate", True)
    with worlds._waiting_is_said():
        for timer in worlds.threading.enumerate():
            if isinstance(timer, worlds.threading.Timer):
                timer.join()
    assert "rank 1 still waits for the other processes of 4 at node7:29500" in caplog.text
