"""What a run leaves to be read: records, TensorBoard's points, after kills, clocks set back and odd numbers."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.config import parse_config
from engine.records.runlog import RunLog, read_metrics
from engine.records.status import fail_status, read_status, update_status
from engine.tasks.finetune_config import FinetuneConfig


def write(run: Path, start_step: int | None, values: dict[int, float]) -> None:
    log = RunLog(run, start_step, total_steps=10)
    for step, value in values.items():
        log.metrics(step, {"train/loss": value})
    log.close()


def points(run: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def records(run: Path) -> list[tuple[int, float]]:
    return [(int(record["step"]), record["train/loss"]) for record in read_metrics(run)]


@pytest.mark.parametrize(
    ("resumed_at", "expected"), [(2, [(0, 1.0), (2, 1.0), (4, 2.0)]), (0, [(0, 2.0), (4, 2.0)])]
)
def test_an_interrupted_attempt_leaves_no_points(
    tmp_path: Path, resumed_at: int, expected: list[tuple[int, float]]
) -> None:
    write(tmp_path, 0, {0: 1.0, 2: 1.0, 4: 1.0, 6: 1.0})
    again = {4: 2.0} if resumed_at else {0: 2.0, 4: 2.0}
    write(tmp_path, resumed_at, again)
    assert points(tmp_path) == records(tmp_path) == expected


def test_nor_does_one_from_tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for hours, value in ((24, 1.0), (48, 2.0), (0, 3.0), (1, 4.0)):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + 3600 * hours)
        write(tmp_path, 2 if value > 1 else 0, {4: value, 6: value})
    assert points(tmp_path) == records(tmp_path) == [(4, 4.0), (6, 4.0)]


def test_records_are_json_whatever_the_number(tmp_path: Path) -> None:
    values = {1: math.nan, 2: math.inf, 3: 0.5}
    write(tmp_path, 0, values)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert [math.isnan(loss) for _, loss in records(tmp_path)] == [True, True, False]


@pytest.mark.parametrize("start_step", [8, None])
def test_a_torn_line_costs_no_other_record(tmp_path: Path, start_step: int | None) -> None:
    write(tmp_path, 0, {2: 1.0, 4: 1.0})
    path = tmp_path / "metrics.jsonl"
    # As earlier versions wrote: a torn line in the middle, and numbers that are no JSON.
    path.write_bytes(
        path.read_bytes() + b'{"step": 6, "tra\n{"step": 7, "train/loss": NaN}\n{"step": 8, "train/lo\xc3'
    )
    write(tmp_path, start_step, {8: 3.0})
    assert [step for step, _ in records(tmp_path)] == [2, 4, 7, 8]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_the_step_that_is_noted_is_at_most_a_second_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(
        "engine.records.runlog.time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time)
    )
    log = RunLog(tmp_path, 0, 10)
    log.status(1, state="running")
    for step, after, noted in ((2, 0.9, 1), (3, 0.2, 3), (4, 0.5, 3), (5, 0.6, 5)):
        clock[0] += after
        log.reached(step)
        assert read_status(tmp_path)["step"] == noted
    log.close()


def test_a_run_that_is_only_evaluated_says_so_beside_its_own_word() -> None:
    words = ["data.train=set", "data.val=set", "output_dir=runs/a", "eval_only=true"]
    config, _ = parse_config(FinetuneConfig, "test", words)
    assert config.status_folder == Path("runs/a/evaluation")
    config, _ = parse_config(FinetuneConfig, "test", words[:-1])
    assert config.status_folder == Path("runs/a")


def test_who_lost_a_process_that_was_asked_to_stop_does_not_say_failed(tmp_path: Path) -> None:
    update_status(tmp_path, state="stopped", message="before training began")
    fail_status(tmp_path, "RuntimeError: Connection closed by peer")
    assert read_status(tmp_path)["state"] == "stopped"
    os.utime(tmp_path / "status.json", (0, 0))  # an earlier attempt's word
    fail_status(tmp_path, "RuntimeError: Connection closed by peer")
    assert read_status(tmp_path)["state"] == "failed"
