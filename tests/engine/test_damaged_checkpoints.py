"""A damaged checkpoint is found, named and set aside, whatever happened to whichever of its files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.runlines import said

from engine.checkpoints.folder import CheckpointError, CheckpointState, find_checkpoints
from engine.checkpoints.integrity import STATE, digest_files, write_sealed
from engine.checkpoints.keeping import clear_leftovers, newest_sound_checkpoint
from engine.checkpoints.loading import plain_path
from engine.parallel.world import World

ALONE = World(0, 1, torch.device("cpu"))
FILES = ("model.safetensors", "config.yaml", "deepspeed/mp_rank_00_model_states.pt", STATE)
DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "removed": lambda path: path.unlink(),
    "zeroed inside": lambda path: path.write_bytes(
        path.read_bytes()[:40] + bytes(20) + path.read_bytes()[60:]
    ),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "became a folder": lambda path: (path.unlink(), path.mkdir()),
}


def write_checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step_{step:08d}"
    (folder / "deepspeed").mkdir(parents=True)
    files = [folder / name for name in FILES[:-1]]
    for path in files:
        path.write_bytes(bytes(range(1, 101)) + path.name.encode())
    state = CheckpointState(step, 1, 0, "2.11.0", "0.19.8", digest_files(folder, files))
    write_sealed(folder / STATE, asdict(state))
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_good_one_is_taken(tmp_path: Path, name: str, damage: str) -> None:
    good, bad = (write_checkpoint(tmp_path, step) for step in (4, 8))
    DAMAGE[damage](bad / name)
    if name == STATE and damage == "grown":  # white space behind an object is none of its damage
        assert newest_sound_checkpoint(tmp_path, ALONE) is not None
        return
    with said(logging.WARNING) as lines:
        found = newest_sound_checkpoint(tmp_path, ALONE)
    assert found is not None
    assert found.path == good
    assert len(lines) == 1
    assert "step_00000008 is damaged" in lines[0]
    assert Path(name).name in lines[0]
    assert "set aside" in lines[0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "damaged_step_00000008", "step_00000004"
    ]  # fmt: skip


def test_a_changed_number_in_the_state_is_found(tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path, 4) / STATE
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 2'))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of .* is sound: .* was changed since it was written"
    ):
        newest_sound_checkpoint(tmp_path, ALONE)


def test_without_a_good_one_the_run_does_not_begin_anew(tmp_path: Path) -> None:
    for step in (4, 8):
        (write_checkpoint(tmp_path, step) / "model.safetensors").write_bytes(b"x")
    for _ in range(2):  # and the second attempt neither
        with pytest.raises(
            CheckpointError, match=r"Bring back one of them from a copy, or choose another output_dir"
        ):
            newest_sound_checkpoint(tmp_path, ALONE)
    assert newest_sound_checkpoint(tmp_path / "new", ALONE) is None


def test_checkpoints_of_earlier_versions_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 4)
    old = {"step": 4, "world_size": 1, "zero_stage": 0, "torch": "2", "deepspeed": "0"}
    (folder / STATE).write_text(json.dumps(old))
    found = newest_sound_checkpoint(tmp_path, ALONE)
    assert found is not None
    assert found.state == CheckpointState(**old)


def test_a_reader_leaves_a_damaged_one_out_and_where_it_is(tmp_path: Path) -> None:
    good, bad = (write_checkpoint(tmp_path, step) for step in (4, 8))
    (bad / STATE).write_bytes(b"")
    with said(logging.WARNING) as lines:
        assert [found.path for found in find_checkpoints(tmp_path)] == [good]
    assert "left out" in lines[0]
    assert bad.is_dir()


def test_a_plain_path_has_no_brackets(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*?"
    folder.mkdir()
    (folder / "file").write_text("here")
    with plain_path(folder) as path:
        assert not set(path) & set("[]*?")
        assert Path(path, "file").read_text() == "here"


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    """But not what another process may be writing below evaluation/, and not what a link leads to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = tmp_path / "run"
    left = [
        "status.json.0.partial",
        "metrics.jsonl.0.partial",
        "run.lock.0.partial",
        "average/.epoch_0001.safetensors.abc.partial/epoch_0001.safetensors",
        "best/.step_00000003.safetensors.abc.partial/step_00000003.safetensors",
        "checkpoints/.writing_step_00000004/state.json",
    ]
    kept = [
        "status.json",
        "average/epoch_0000.safetensors",
        "evaluation/last/.scores.npz.abc.partial/scores.npz",
        "report.html.0.partial",
        f"run.lock.{os.getpid()}.partial",
    ]
    for name in (*left, *kept):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half of it")
    (run / "average" / "linked.partial").symlink_to(elsewhere)
    clear_leftovers(run)
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == sorted(kept)
    assert not list((run / "average").glob("*.partial"))
    assert not list((run / "checkpoints").iterdir())
    assert elsewhere.is_dir()
