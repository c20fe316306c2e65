"""What a process computes on, and what a GPU that can't be used leads to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.processes import run_world

from engine.parallel.devices import local_device
from engine.records.status import read_status
from engine.training.optimizer import place_steps


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_can_not_be_used_is_an_error(tmp_path: Path) -> None:
    assert local_device({}, tmp_path) == torch.device("cpu")
    (tmp_path / "nvidiactl").touch()
    assert local_device({"SLURM_GPUS_ON_NODE": "0"}, tmp_path) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"there is a GPU, and PyTorch .* can't use it"):
        local_device({"SLURM_GPUS_ON_NODE": "4"}, tmp_path)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(ValueError, match="nvidia-smi shows"):
        local_device({}, tmp_path)
    for hidden in ("", "-1"):
        assert local_device({"CUDA_VISIBLE_DEVICES": hidden}, tmp_path) == torch.device("cpu")


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device({"LOCAL_RANK": "1"}) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="PyTorch sees 2 GPUs: start 2 a node"):
        local_device({"LOCAL_RANK": "2"})


def test_counts_of_steps_lie_where_their_parameters_are() -> None:
    """As after a universal checkpoint: a count on the CPU, and a parameter that isn't there."""
    parameter = torch.nn.Parameter(torch.zeros(3, device="meta"))
    for fused in (False, True):
        optimizer = torch.optim.AdamW([parameter])
        optimizer.defaults["fused"] = fused
        optimizer.state[parameter] = {"step": torch.tensor(7, dtype=torch.int64)}
        place_steps(optimizer)
        step = optimizer.state[parameter]["step"]
        assert (step.device.type, step.dtype) == (("meta", torch.float32) if fused else ("cpu", torch.int64))


def test_a_fault_on_one_rank_ends_all_of_them_with_its_traceback(tmp_path: Path) -> None:
    settings = [f"output_dir={tmp_path}", "data.train=none"]
    # In less than the half hour for which a collective waits.
    ranks = run_world("-m", "support.crashing", *settings, world_size=2, timeout=120)
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert "RuntimeError: a fault of ours" in ranks[1].stderr
    assert "Traceback" in ranks[1].stderr
    assert read_status(tmp_path)["state"] == "failed"
