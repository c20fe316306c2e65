"""Pretraining on a real SLURM of two nodes: every way to be interrupted, compared with a run that was not."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from support.cluster import Cluster, actions, assert_same_losses
from support.runs import PRETRAIN, history, launcher, losses

pytestmark = pytest.mark.cluster

STEPS = 160


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def uninterrupted(cluster: Cluster) -> Path:
    run = cluster.submit("uninterrupted")
    cluster.wait_for_end(run)
    return run


@pytest.fixture(autouse=True)
def free_nodes(cluster: Cluster):
    yield
    cluster.run("scancel", "--user=root")
    cluster.wait_until_idle()


def test_trains_on_two_nodes(cluster: Cluster, uninterrupted: Path):
    assert actions(uninterrupted) == ["finish"]
    assert sorted(losses(uninterrupted)) == list(range(1, STEPS + 1))
    log = next((uninterrupted / "launch" / "logs").glob("*_0_log.out")).read_text()
    assert "2 process(es)" in log
    assert "finished" in cluster.run(*launcher("status", "uninterrupted"))


def test_a_signal_to_the_job_saves_and_requeues(cluster: Cluster, uninterrupted: Path):
    run = cluster.submit("signalled")
    cluster.wait_for_step(run, 30)
    cluster.run("scancel", "--signal=USR1", cluster.job_id(run))
    assert cluster.wait_for_end(run) == ["requeue", "finish"]
    first, last = history(run)
    assert 30 <= first["checkpoint"] < STEPS
    assert last["attempt"] != first["attempt"]
    assert_same_losses(run, uninterrupted)


def test_a_signal_to_one_worker_stops_all(cluster: Cluster, uninterrupted: Path):
    run = cluster.submit("one_worker")
    cluster.wait_for_step(run, 30)
    os.kill(cluster.workers(run)[-1], signal.SIGUSR1)
    assert cluster.wait_for_end(run) == ["requeue", "finish"]
    assert_same_losses(run, uninterrupted)


def test_requeued_by_the_cluster(cluster: Cluster, uninterrupted: Path):
    run = cluster.submit("requeued")
    cluster.wait_for_step(run, 50)
    cluster.run("scontrol", "requeue", cluster.job_id(run))
    cluster.wait_for_end(run)
    assert_same_losses(run, uninterrupted)


def test_a_killed_worker_restarts_the_attempt(cluster: Cluster, uninterrupted: Path):
    run = cluster.submit("killed")
    cluster.wait_for_step(run, 50)
    before = cluster.workers(run)
    started = time.monotonic()
    os.kill(before[-1], signal.SIGKILL)
    cluster.wait(run, lambda: not set(before) & set(cluster.workers(run)), "the end of the other worker", 30)
    assert time.monotonic() - started < 30
    assert cluster.wait_for_end(run) == ["restart", "finish"]
    assert_same_losses(run, uninterrupted)


def test_a_node_that_vanishes(cluster: Cluster, uninterrupted: Path):
    """Its daemon, launcher, torchrun and worker die at one moment, while a checkpoint may be half written."""
    run = cluster.submit("vanished", "train.checkpoint_interval=1")
    cluster.wait_for_step(run, 30)
    cluster.kill_node("n1")
    try:
        cluster.wait(run, lambda: not cluster.workers(run), "the end of the other worker")
        (complete, *_) = sorted((run / "checkpoints").glob("step_*"), reverse=True)
        assert {"model.safetensors", "state.json"} < {path.name for path in complete.iterdir()}
    finally:
        cluster.revive_node("n1")
    cluster.wait_for_end(run)
    log = cluster.logs(run, whole=True)
    assert int(log.rpartition("resuming at step ")[2].split()[0]) >= 29
    assert_same_losses(run, uninterrupted)


def test_a_cancelled_run_goes_on_when_submitted_again(cluster: Cluster, uninterrupted: Path):
    run = cluster.submit("cancelled")
    cluster.wait_for_step(run, 30)
    assert "cancelled" in cluster.run(*launcher("cancel", "cancelled"))
    cluster.wait_until_idle()
    assert "finish" not in actions(run)
    cluster.submit("cancelled")
    cluster.wait_for_end(run)
    assert_same_losses(run, uninterrupted)


def test_a_sweep_is_an_array_of_independent_runs(cluster: Cluster, uninterrupted: Path):
    base = cluster.submit("sweep", nodes=1, seeds="[0, 1]", processes_per_node=1)
    runs = [base / "seed-0", base / "seed-1"]
    cluster.wait_for_step(runs[1], 20)
    array = cluster.run("squeue", "--noheader", "--array", "--format=%i", "--name=sweep").split()
    cluster.run("scancel", "--signal=USR1", next(job for job in array if job.endswith("_1")))
    for run in runs:
        cluster.wait_for_end(run)
    assert actions(runs[0]) == ["finish"]
    assert actions(runs[1]) == ["requeue", "finish"]
    first, second, joint = (losses(run) for run in (*runs, uninterrupted))
    assert first[1] != second[1]
    # One process and two agree on the same global batches, up to rounding.
    assert first[STEPS] == pytest.approx(joint[STEPS], rel=1e-3)


def test_torchrun_by_srun(cluster: Cluster, uninterrupted: Path):
    """The plain command of docs/cluster.md."""
    torchrun = (
        f"{sys.executable} -m torch.distributed.run --nnodes=$SLURM_NNODES --nproc_per_node=1 "
        f"--rdzv_backend=c10d --rdzv_id=$SLURM_JOB_ID --rdzv_endpoint=$(hostname):{free_port()} "
        f"{PRETRAIN} --config run.yaml output_dir=runs/plain"
    )
    cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", torchrun)
    assert_same_losses(cluster.folder / "runs" / "plain", uninterrupted)


def test_time_limit(cluster: Cluster, uninterrupted: Path):
    """A real limit of two minutes, of which SLURM warns up to half a minute early.

    The workers are held still until the warning comes: so it finds them amid the run on a machine of any speed.
    """
    run = cluster.submit("limited", minutes=2, warning_seconds=30)
    cluster.wait_for_step(run, 30)
    held = cluster.workers(run)
    for worker in held:
        os.kill(worker, signal.SIGSTOP)
    cluster.wait(run, lambda: "signalled" in cluster.logs(run), "its time limit")
    for worker in held:
        os.kill(worker, signal.SIGCONT)
    *stays, last = cluster.wait_for_end(run)  # a slow machine needs more stays of two minutes
    assert (set(stays), last) == ({"requeue"}, "finish")
    assert_same_losses(run, uninterrupted)
