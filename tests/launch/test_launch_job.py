"""The job on its nodes: attempts, restarts, signals, limits; with stand-ins for torchrun and training."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.node import finish, start_node
from support.runs import history
from torch.distributed.run import get_args_parser

from launch.attempt import Rendezvous
from launch.job import TrainingFailedError, TrainingJob
from launch.torchrun import torchrun_command


def wait_for(done: Callable[[], object], seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def actions(run: Path) -> list[str]:
    return [attempt["action"] for attempt in history(run)]


def started(run: Path, rank: int) -> list[list[str]]:
    path = run / f"started-{rank}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_finishes(tmp_path):
    code, output = finish(start_node(tmp_path / "run", "steps=5", cpus_per_process=3))
    assert code == 0, output
    assert actions(tmp_path / "run") == ["finish"]
    assert [words[1] for words in started(tmp_path / "run", 1)] == ["3"]  # threads


def test_killed_worker_restarts_from_the_newest_checkpoint(tmp_path):
    run = tmp_path / "run"
    code, output = finish(start_node(run, "steps=20", "hold=1", "crash_at=12", "crash_rank=1"))
    assert code == 0, output
    assert actions(run) == ["restart", "finish"]
    endpoints = {file.read_text() for file in run.glob("launch/attempts/*/rendezvous.json")}
    assert len(endpoints) == 2  # a fresh rendezvous for each attempt


def test_restarts_are_limited(tmp_path):
    run = tmp_path / "run"
    code, output = finish(start_node(run, "steps=x", max_restarts=1))
    assert code == 1
    assert actions(run) == ["restart", "fail"]
    assert "max_restarts=1" in output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_warning_stops_workers_with_a_checkpoint(tmp_path, number):
    run = tmp_path / "run"
    node = start_node(run, "steps=2000")
    wait_for(lambda: (run / "checkpoints").exists() and started(run, 1))
    node.send_signal(number)
    code, output = finish(node)
    assert code == 75, output  # no queue to go back to
    assert actions(run) == ["requeue"]
    assert not any(is_alive(int(words[0])) for rank in (0, 1) for words in started(run, rank))


def test_workers_that_do_not_stop_are_ended(tmp_path):
    run = tmp_path / "run"
    node = start_node(run, "steps=2000", "deaf=1", warning_seconds=2.0)
    wait_for(lambda: (run / "checkpoints").exists())
    node.send_signal(signal.SIGUSR2)
    code, output = finish(node)
    assert code == 75, output
    assert "before the workers had saved" in history(run)[0]["message"]


def test_being_ended_by_the_cluster_is_not_a_reason_to_requeue(tmp_path):
    run = tmp_path / "run"
    node = start_node(run, "steps=2000")
    wait_for(lambda: (run / "checkpoints").exists() and started(run, 1))
    node.send_signal(signal.SIGTERM)
    assert finish(node)[0] == 143
    assert actions(run) == ["end"]


def test_workers_do_not_outlive_a_killed_launcher(tmp_path):
    run = tmp_path / "run"
    node = start_node(run, "steps=2000")
    wait_for(lambda: (run / "checkpoints").exists() and started(run, 1))
    node.kill()
    node.communicate()
    workers = [int(started(run, rank)[0][0]) for rank in (0, 1)]
    wait_for(lambda: not any(map(is_alive, workers)))


def test_two_nodes_finish_together(tmp_path):
    run = tmp_path / "run"
    nodes = [start_node(run, "steps=20", node=i, nodes=2) for i in range(2)]
    outcomes = [finish(node) for node in nodes]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert sorted(path.name for path in run.glob("started-*")) == [f"started-{rank}" for rank in range(4)]
    assert actions(run) == ["finish"]


def test_a_failure_on_one_node_restarts_all(tmp_path):
    run = tmp_path / "run"
    options = ("steps=10", "hold=1", "crash_at=10", "crash_rank=3")
    nodes = [start_node(run, *options, node=i, nodes=2) for i in range(2)]
    outcomes = [finish(node) for node in nodes]
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    assert actions(run) == ["restart", "finish"]
    assert len(started(run, 3)) == 2


def test_a_node_that_vanishes_sends_the_job_back_to_the_queue(tmp_path):
    run = tmp_path / "run"
    nodes = [start_node(run, "steps=2000", node=i, nodes=2, rendezvous_seconds=8) for i in range(2)]
    wait_for(lambda: (run / "checkpoints").exists() and started(run, 0) and started(run, 2))
    nodes[1].kill()
    nodes[1].communicate()
    os.kill(int(started(run, 0)[0][0]), signal.SIGKILL)  # a real worker would find the others gone
    code, output = finish(nodes[0])
    assert code == 75, output
    assert actions(run) == ["requeue"]
    assert "1 of 2 nodes vanished" in history(run)[0]["message"]


def job(tmp_path: Path, **settings) -> TrainingJob:
    return TrainingJob(("train.py",), tmp_path, tmp_path, processes=1, **settings)


def requeued(before: TrainingJob) -> TrainingJob:
    after = before.checkpoint().function
    assert isinstance(after, TrainingJob)
    return after


def checkpoint_at(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def test_requeues_as_long_as_there_is_progress(tmp_path):
    again = requeued(job(tmp_path))
    assert (again.requeues, again.last_progress) == (1, (-1, 0))
    with pytest.raises(TrainingFailedError, match="no progress"):
        again.checkpoint()
    checkpoint_at(tmp_path, 10)
    (tmp_path / "checkpoints" / ".writing_step_00000020").mkdir()  # not a complete one
    third = requeued(again)
    assert (third.requeues, third.last_progress) == (2, (10, 0))
    with pytest.raises(TrainingFailedError, match="was and is of step 10"):
        third.checkpoint()


def test_an_evaluation_that_gets_on_is_progress_without_a_checkpoint(tmp_path):
    checkpoint_at(tmp_path, 10)
    job_now = job(tmp_path, last_progress=(10, 0))
    for evaluated in (0, 1):
        status = {"state": "stopped", "phase": "evaluating", "step": 10, "evaluated": evaluated}
        (tmp_path / "status.json").write_text(json.dumps(status))
        job_now = requeued(job_now)
        assert job_now.last_progress == (10, 1 + evaluated)
    with pytest.raises(TrainingFailedError, match=r"no progress .* the evaluation at part 2"):
        job_now.checkpoint()


def test_requeues_are_limited(tmp_path):
    checkpoint_at(tmp_path, 10)
    with pytest.raises(TrainingFailedError, match="max_requeues"):
        job(tmp_path, max_requeues=2, requeues=2, last_progress=(5, 0)).checkpoint()


def test_another_launchers_variables_do_not_reach_workers(tmp_path, monkeypatch):
    from launch.torchrun import worker_environment

    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "5")
    found = worker_environment(2, interface="ib0", extra={"NCCL_DEBUG": "INFO"})
    assert not {"RANK", "WORLD_SIZE", "SLURM_PROCID", "SUBMITIT_EXECUTOR"} & set(found)
    assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found["NCCL_DEBUG"] == "INFO"
    assert int(found["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize("binding", [None, "node", "core-complex"])
def test_workers_are_bound_as_torchrun_is_told(binding: str | None) -> None:
    command = torchrun_command(Rendezvous("host:29500", "run-0"), 1, 4, 8, numa_binding=binding)
    told = get_args_parser().parse_args([*command[3:], "main_pretrain.py"])
    assert (told.numa_binding, told.nnodes, told.nproc_per_node, told.node_rank) == (binding, "4", "8", 1)
