"""What a process computes on, and what a GPU that can't be used leads to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.crashing import FAULTS
from support.processes import run_ranks, run_worlds

from engine.parallel.devices import local_device
from engine.records.status import read_status
from engine.training.optimizer import place_steps
from launch.config import LaunchConfig
from launch.submit import make_job
from launch.torchrun import GPUS, worker_environment
from launch.training import TrainingRun


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_can_not_be_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_device({}, tmp_path) == torch.device("cpu")
    (tmp_path / "nvidiactl").touch()
    assert local_device({"SLURM_GPUS_ON_NODE": "0"}, tmp_path) == torch.device("cpu")
    for name in ("SLURM_GPUS_ON_NODE", GPUS):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        with pytest.raises(
            ValueError, match=rf"{name}=4: this node's processes are to have a GPU each, .*gpus_per_node=0"
        ) as caught:
            local_device({name: "4"}, tmp_path)
        assert "is built for CUDA 13.0 and needs NVIDIA driver 580 or newer" in str(caught.value)
        monkeypatch.setattr(torch.version, "cuda", None)
        with pytest.raises(ValueError, match="is built for CPUs only: install a build for CUDA"):
            local_device({name: "4"}, tmp_path)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(ValueError, match=r"there is a GPU, and PyTorch .* can't use it"):
        local_device({}, tmp_path)
    for hidden in ("", "-1"):
        assert local_device({"CUDA_VISIBLE_DEVICES": hidden}, tmp_path) == torch.device("cpu")


def test_the_launcher_tells_workers_that_gpus_are_meant() -> None:
    runs = TrainingRun(Path("train.py"), (), Path("run"))
    for config, said in ((LaunchConfig(gpus_per_node=2), "2"), (LaunchConfig(gpus_per_node=0), None)):
        job = make_job(config, runs, Path.cwd())
        assert worker_environment(1, extra=job.environment).get(GPUS) == said


def test_a_deterministic_run_asks_torch_for_it(tmp_path: Path) -> None:
    settings = ["train.parallel.deterministic=true", "data.train=none"]
    (rank,) = run_worlds([["-m", "support.crashing", f"output_dir={tmp_path / 'none'}", *settings]], 1)[0]
    assert rank.returncode == 0, rank.stderr
    assert "deterministic: True :4096:8" in rank.stderr


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device({"LOCAL_RANK": "1"}) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="PyTorch sees 2 GPUs: start 2 a node"):
        local_device({"LOCAL_RANK": "2"})


def test_counts_of_steps_lie_where_their_parameters_are() -> None:
    """As in a checkpoint of another optimizer: a count on the CPU, and a parameter that isn't there."""
    parameter = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    for stored in (torch.tensor(7, dtype=torch.int64), torch.tensor(7.0), 7):
        optimizer.state[parameter] = {"step": stored}
        place_steps(optimizer)
        step = optimizer.state[parameter]["step"]
        assert (step.device.type, step.dtype) == ("meta", torch.float32)


def test_a_fault_on_one_rank_ends_all_of_them_with_its_traceback(tmp_path: Path) -> None:
    programs = [
        ["-m", "support.crashing", f"output_dir={tmp_path / phase}", "data.train=none"] for phase in FAULTS
    ]
    # In less than the half hour for which a collective waits.
    for phase, ranks in zip(FAULTS, run_worlds(programs, 2, timeout=600), strict=True):
        interrupted = phase == "interrupt"
        assert [rank.returncode for rank in ranks] == [1, 130 if interrupted else 1], phase
        assert "Traceback" in ranks[1].stderr, phase
        assert ("KeyboardInterrupt" if interrupted else "RuntimeError: a fault of ours") in ranks[1].stderr
        assert read_status(tmp_path / phase)["state"] == "failed", phase


def test_rank_0_says_which_checkpoints_there_are(tmp_path: Path) -> None:
    """On a file system that shows another rank an old listing of a folder, or none."""
    first, second = run_ranks("support.resumes:resumed_with_a_stale_listing", 2, run=str(tmp_path))
    assert first == second == {"resumed": 2, "skipped": [3], "back": 2, "left": [0], "finished": True}
