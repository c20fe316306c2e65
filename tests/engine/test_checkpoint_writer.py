"""Checkpoints are written behind the steps that follow, and are what they were when they were begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import run_ranks

from engine.checkpoints.folder import find_checkpoints


@pytest.mark.parametrize("size", [1, 2])
def test_steps_go_on_and_change_nothing_of_what_is_written(tmp_path: Path, size: int) -> None:
    stages = [0] if size == 1 else [0, 1, 2]
    runs = [
        {"run": str(tmp_path / f"{stage}{waits}"), "zero_stage": stage, "waits": waits}
        for stage in stages
        for waits in (False, True)
    ]
    found = run_ranks("support.behind:runs_seen", size, runs=runs)[0]
    for stage, behind, waiting in zip(stages, found[::2], found[1::2], strict=True):
        assert behind[5] == behind[6] == [0], stage  # found when all ranks have written it, and not before
        assert waiting[4] == [0, 4], stage
        one, other = ([c.state for c in find_checkpoints(tmp_path / f"{stage}{w}")] for w in (False, True))
        assert [state.step for state in one] == [0, 4, 7], stage
        assert one == other, stage  # with the sizes and hashes of all files
        folder = find_checkpoints(tmp_path / f"{stage}False")[1].path
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert set(one[1].files) == there - {"state.json"}, stage


def test_going_back_waits_for_a_disk_that_is_slow_to_sync(tmp_path: Path) -> None:
    first, second = run_ranks("support.behind:slow_disks", 2, run=str(tmp_path))
    # The second time, the batches are read from 5 on where clips are blamed, and from 4 on to go on.
    assert first == second == {"began": [0, 5, 4], "seen": [0], "left": [0, 4, 7], "resumed": 7}


def test_a_full_disk_on_one_rank_is_said_by_all(tmp_path: Path) -> None:
    for said in run_ranks("support.behind:full_disk", 2, run=str(tmp_path)):
        assert "can't be written (File too large)" in said
        assert "run the same command again" in said
    assert find_checkpoints(tmp_path) == []


def test_a_run_that_fails_alone_keeps_what_was_being_written(tmp_path: Path) -> None:
    assert run_ranks("support.behind:failing", 1, run=str(tmp_path)) == [[0, 4]]
