"""An interrupted run, resumed, takes the steps that the uninterrupted run takes.

Runs that need the same number of processes share them, one after the other: starting processes is most of the time.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.processes import run_ranks

from engine.checkpoints.folder import find_checkpoints
from engine.records.runlog import read_metrics

STEPS = 8


def fit(world_size: int, runs: list[dict]) -> list[dict]:
    """Trains in real processes; every rank must agree on the outcomes."""
    runs = [{"steps": STEPS} | run | {"run": str(run["run"])} for run in runs]
    results = run_ranks("support.training:fits", world_size, runs=runs)
    assert all(result == results[0] for result in results)
    return results[0]


def losses(run: Path) -> list[float]:
    records = read_metrics(run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["train/loss"] for record in records]


def state(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


@pytest.mark.parametrize(
    ("world_size", "cases"), [(1, [(0, 2), (1, 1)]), (2, [(0, 1), (1, 1), (2, 2)])], ids=["one", "two"]
)
def test_resume_is_exact(tmp_path: Path, world_size: int, cases: list[tuple[int, int]]) -> None:
    settings = [
        {"zero_stage": zero_stage, "accumulation": accumulation} for zero_stage, accumulation in cases
    ]
    stop = {"signal_rank": world_size - 1, "signal_step": 4}
    names = [(tmp_path / f"whole{i}", tmp_path / f"interrupted{i}") for i in range(len(cases))]
    runs = [{"run": whole, **s} for (whole, _), s in zip(names, settings, strict=True)]
    runs += [{"run": interrupted, **s, **stop} for (_, interrupted), s in zip(names, settings, strict=True)]
    outcomes = fit(world_size, runs)
    assert all(outcome["finished"] for outcome in outcomes[: len(cases)])
    for (_, interrupted), outcome in zip(names, outcomes[len(cases) :], strict=True):
        assert not outcome["finished"]
        assert 5 <= outcome["step"] < STEPS
        assert state(interrupted) == "stopped"
        assert find_checkpoints(interrupted)[-1].state.step == outcome["step"]
    resumed = [{"run": interrupted, **s} for (_, interrupted), s in zip(names, settings, strict=True)]
    assert all(outcome["finished"] for outcome in fit(world_size, resumed))
    for whole, interrupted in names:
        assert state(interrupted) == "running"  # the program says when all is done
        assert losses(interrupted) == losses(whole)


def test_resume_in_another_world(tmp_path: Path) -> None:
    """ZeRO 0, 1 and 2; from 2 to 1, 1 to 2 and 2 to 3 processes: the same global batches, losses to rounding.

    ``lone`` has a group of one number: ranks of which it holds nothing but padding must resume too.
    """
    stop = {"signal_rank": 0, "signal_step": 3}
    stages = {0: {"zero_stage": 0}, 1: {"zero_stage": 1}, 2: {"zero_stage": 2}}
    lone = {"zero_stage": 1, "lone_group": True}
    two_to_one = {f"2to1_{z}": stages[z] for z in stages}
    two_to_three = {"2to3_1": stages[1], "2to3_lone": lone}
    one_to_two = {f"1to2_{z}": stages[z] for z in stages} | {"1to2_lone": lone}

    def runs(named: dict[str, dict], **more: object) -> list[dict]:
        return [{"run": tmp_path / name, **settings, **more} for name, settings in named.items()]

    whole = {"whole": stages[0], "whole_lone": {"zero_stage": 0, "lone_group": True}}
    fit(2, runs(two_to_one | two_to_three, **stop))
    outcomes = fit(1, runs(whole) + runs(two_to_one) + runs(one_to_two, **stop))
    assert [outcome["finished"] for outcome in outcomes] == [True] * 5 + [False] * 4
    fit(2, runs(one_to_two))
    fit(3, runs(two_to_three))
    for name in [*two_to_one, *two_to_three, *one_to_two]:
        expected = losses(tmp_path / ("whole_lone" if name.endswith("lone") else "whole"))
        assert losses(tmp_path / name) == pytest.approx(expected, rel=2e-5), name
