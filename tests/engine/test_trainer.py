"""The training loop when things go wrong, and what can be seen of it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
from support.processes import run_ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.checkpoints.folder import find_checkpoints
from engine.records.runlog import read_metrics


def test_non_finite_steps_and_a_stopped_rank(tmp_path: Path) -> None:
    """Found by both ranks though only one met it; named; passed over; given up on when it goes on. Waiting is said."""
    cases = [
        {"steps": [5], "zero_stage": 0, "gradient_only": False},
        {"steps": [5], "zero_stage": 1, "gradient_only": True},
        {"steps": [4, 5, 6, 7], "zero_stage": 0, "gradient_only": False},
        # The first dozen of 24 clips is in step 1, 3, 5 and 7, of which the last is one too many.
        {"steps": [], "zero_stage": 1, "gradient_only": False, "clip": "clip3"},
        {"steps": [], "zero_stage": 0, "gradient_only": True, "clip": "clip9"},
        {"steps": [], "stopped_in": 5},
    ]
    runs = [{"run": str(tmp_path / str(i)), **case} for i, case in enumerate(cases)]
    first, second = run_ranks("support.mishaps:spoilt_runs", 2, runs=runs)
    for one, other in zip(first, second, strict=True):
        assert one["skipped"] == other["skipped"]
        assert (one["error"] is None) == (other["error"] is None)
    for result, folder in zip(first[:2], ("0", "1"), strict=True):
        assert result["error"] is None
        assert result["finite"]
        assert result["skipped"] == [5]
        assert "step 6" in result["said"]
        assert "going back to step 4" in result["said"]
        # The batch of step 6 holds the second dozen of 24 clips; each rank named its own half.
        assert all(f"clip{row}" in result["said"] for row in range(12, 24))
        assert json.loads((tmp_path / folder / "skipped_steps.json").read_text()) == [5]
        assert [record["step"] for record in read_metrics(tmp_path / folder)][-1] == 8
        assert "each of these clips alone is finite, with the weights of step 4" in result["said"]
    for result, clip in zip(first[3:5], ("clip3", "clip9"), strict=True):
        assert "after 3 such steps" in result["error"]
        for step in (0, 0, 4):
            assert f"not finite alone, with the weights of step {step}: {clip}\n" in result["said"]
        assert "alone is finite" not in result["said"]
    assert "after 3 such steps" in first[2]["error"]
    assert first[2]["finite"]
    assert json.loads((tmp_path / "2" / "status.json").read_text())["state"] == "failed"
    assert "it goes on from step 0" in first[2]["error"]
    names = sorted(path.name for path in (tmp_path / "2" / "checkpoints").iterdir())
    assert names == ["step_00000000", "suspect_step_00000004"]
    assert first[5]["error"] is None
    assert re.search(r"rank 0 has waited [2-9] s for the others in step 6 \(", first[5]["said"])


def test_bad_steps_far_from_each_other_do_not_add_up(tmp_path: Path) -> None:
    runs = [
        {"run": str(tmp_path / str(stretch)), "steps": [0, 2, 4, 6], "stretch": stretch}
        for stretch in (3, 1000)
    ]
    ((near, far),) = run_ranks("support.mishaps:spoilt_runs", 1, runs=runs)
    assert (near["error"], near["skipped"]) == (None, [0, 2, 4, 6])
    assert "after 3 such steps" in far["error"]


def test_the_advice_after_ruined_weights_helps(tmp_path: Path) -> None:
    (found,) = run_ranks("support.mishaps:ruined_and_run_again", 1, run=str(tmp_path))
    assert "Lower optimizer.lr" in found["error"]
    assert f"goes on from step {found['begun']}" in found["error"]
    assert found["left"] == [found["begun"]] == [0]
    assert found["finished"]
    assert found["skipped"] == []


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_going_back_in_another_world_than_the_checkpoints(tmp_path: Path, zero_stage: int) -> None:
    run_ranks("support.training:fits", 2, runs=[{"run": str(tmp_path), "steps": 4, "zero_stage": zero_stage}])
    runs = [{"run": str(tmp_path), "steps": [5], "zero_stage": zero_stage}]
    ((found,),) = run_ranks("support.mishaps:spoilt_runs", 1, runs=runs)
    assert found["error"] is None
    assert found["skipped"] == [5]
    assert "going back to step 4" in found["said"]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_step_waits_for_no_number(tmp_path: Path, zero_stage: int) -> None:
    assert run_ranks("support.mishaps:looks_in_a_step", 1, run=str(tmp_path), zero_stage=zero_stage) == [[]]


def test_unreadable_clips_are_named_and_have_a_budget(tmp_path: Path) -> None:
    within, other = run_ranks(
        "support.mishaps:unreadable", 2, run=str(tmp_path / "a"), fraction=0.05, every=4
    )
    assert within["error"] is None
    assert "unreadable clip bad0 in shard-000007.tar: not a JPEG" in within["said"]
    assert read_metrics(tmp_path / "a")[-1]["train/unreadable_clips"] == 10
    assert (
        within["shared"] == other["shared"] == 10
    )  # of 40 looks: where there is nothing to name, ranks tell nothing
    beyond = run_ranks("support.mishaps:unreadable", 1, run=str(tmp_path / "b"), fraction=0.01)[0]
    assert beyond["step"] == 11
    assert "max_bad_fraction" in beyond["error"]
    assert "shard-000007.tar" in beyond["error"]


def test_what_a_run_writes(tmp_path: Path) -> None:
    assert run_ranks("support.mishaps:evaluated", 1, run=str(tmp_path)) == [{"finished": True}]
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "running", "phase": "training", "step": 6, "total_steps": 6, "evaluated": 0, "message": ""
    }  # fmt: skip
    assert [c.state.step for c in find_checkpoints(tmp_path)] == [4, 6]
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if "val/score" in r] == [0, 3, 6]
    training = [r for r in records if "train/loss" in r]
    assert [r["step"] for r in training] == [2, 3, 4, 6]
    names = {
        "loss", "loss_mae_audio", "loss_mae_visual", "loss_contrastive", "contrastive_accuracy", "contrastive_chance",
        "grad_norm", "lr_decay", "lr_no_decay", "epoch", "samples_per_second", "data_wait_share", "mfu",
        "unreadable_clips",
    }  # fmt: skip
    assert set(training[0]) == {"step"} | {f"train/{name}" for name in names}
    assert training[0]["train/contrastive_chance"] == pytest.approx(1 / 12)

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("val/score")] == [(0, 0.0), (3, 3.0), (6, 6.0)]
    logged = {e.step: e.value for e in events.Scalars("train/loss")}
    assert logged == pytest.approx({r["step"]: r["train/loss"] for r in training})
    picture = events.Images("test/grey")[-1]
    assert (picture.step, picture.width, picture.height) == (6, 8, 8)
    png = (tmp_path / "pictures" / "test_grey_00000006.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (8, 8)
