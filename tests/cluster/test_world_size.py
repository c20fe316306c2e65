"""A run that comes back with another number of processes, through the launcher and torchrun."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.cluster import actions
from support.runs import PRETRAIN, launcher, launcher_environment, losses, step_of, write_run_config

pytestmark = pytest.mark.cluster

STEPS = 48
SETTINGS = ("--cluster=debug", "--gpus_per_node=0", "--preflight=false", "--snapshot=false")


def start(folder: Path, name: str, processes: int, zero_stage: int) -> subprocess.Popen[bytes]:
    settings = (*SETTINGS, f"--processes_per_node={processes}", f"--name={name}")
    run = ("--config=run.yaml", f"train.parallel.zero_stage={zero_stage}")
    command = launcher("submit", *settings, "--", PRETRAIN, *run)
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=launcher_environment(), stdout=log, stderr=log)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    write_run_config(folder, STEPS, global_batch_size=12)
    assert start(folder, "whole", 1, 0).wait(400) == 0
    return folder


@pytest.mark.parametrize(("zero_stage", "before", "after"), [(0, 1, 2), (1, 2, 1), (2, 2, 3)])
def test_goes_on_with_the_same_global_batches(folder: Path, zero_stage: int, before: int, after: int):
    run = folder / "runs" / f"zero{zero_stage}"
    job = start(folder, run.name, before, zero_stage)
    deadline = time.monotonic() + 300
    while step_of(run) < 4:
        assert job.poll() is None, (folder / f"{run.name}.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(300) == 75
    assert 4 <= step_of(run) < STEPS
    assert start(folder, run.name, after, zero_stage).wait(400) == 0
    assert actions(run) == ["requeue", "finish"]
    assert losses(run) == pytest.approx(losses(folder / "runs" / "whole"), rel=1e-4)
