"""Configs and run folders that others made: a command in one is not run, and no link in one is written through."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from atomic import refuse_links, write_atomically
from engine.checkpoints.folder import Checkpoint, CheckpointError, CheckpointState
from engine.checkpoints.integrity import write_sealed
from engine.checkpoints.keeping import newest_sound_checkpoint
from engine.checkpoints.loading import check_model
from engine.config import ALLOW_COMMANDS, PretrainConfig, parse_config, save_config
from engine.parallel.world import World
from engine.records.runlog import _keep_records, read_metrics
from engine.records.status import fail_status, read_status
from engine.training.run_lock import is_held_by_another
from engine.training.trainer import Trainer
from strict_yaml import load_yaml, load_yaml_file


def test_a_command_in_a_file_is_run_only_where_somebody_typed_it(tmp_path: Path, capsys) -> None:
    command = "pipe:touch marker {}"
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{train: shards, val: '{command}', cache_dir: {tmp_path}}}\n")
    given = ["--config", str(path)]
    for arguments in (given, [*given, "data.train=pipe:other {}"]):
        with pytest.raises(SystemExit):
            parse_config(PretrainConfig, "program", arguments)
        assert "names the command 'pipe:touch marker {}', which would be run" in capsys.readouterr().err
    for arguments in (
        [*given, f"data.val={command}"],
        [*given, "--data.val", command],
        [*given, ALLOW_COMMANDS],
    ):
        assert parse_config(PretrainConfig, "program", arguments)[0].data.val == command
    path.write_text(path.read_text() + "allow_commands_in_files: true\n")  # a file can't allow itself
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, "program", given)


def test_no_link_is_written_through(tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    (run / "config.yaml").symlink_to(victim)
    with pytest.raises(ValueError, match=r"config.yaml is a symbolic link"):
        refuse_links(run)
    save_config(run, "model: {}\n")
    assert victim.read_text() == "precious"
    assert not (run / "config.yaml").is_symlink()
    (run / "tensorboard").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="tensorboard is a symbolic link"):
        refuse_links(run)
    (run / "tensorboard").unlink()
    (run / ".script.sh").symlink_to(run / "job.sh")  # to a file beside it, as submitit leaves them
    refuse_links(run)
    write_atomically(run / "evaluation.yaml", "x")
    refuse_links(run)
    refuse_links(tmp_path / "not there yet")


@pytest.mark.parametrize(
    "name", ["run.lock", "status.json", "metrics.jsonl", "checkpoints/step_00000004/state.json", "launch"]
)
def test_a_pipe_in_a_runs_folder_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is neither a file nor a folder"):
        refuse_links(tmp_path, skip=("launch", "wandb"))
    assert not is_held_by_another(tmp_path)
    fail_status(tmp_path, "refused")  # as the programs do then
    assert read_status(tmp_path)["message"] == "refused"


def bomb(levels: int) -> str:
    """Ten aliases of ten aliases of …: a line a level, ten to the power of them in values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


HOSTILE_YAML = {
    "aliases": (bomb(12), "it has more than 20000 values, aliases included"),
    "merges": ("a: &a {<<: [" + "{x: 1}, " * 20_000 + "]}", "more than 20000 values"),
    "itself": ("a: &a [*a]", r"the alias \*a has no value before it, or is part of it"),
    "depth": ("a: " + "[" * 100_000, "more than 40 levels"),
    "block depth": ("\n".join(" " * i + "a:" for i in range(400)), "more than 40 levels"),
    "depth by aliases": (
        "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [[*a{i - 1}]]" for i in range(1, 30)),
        "more than 40 levels",
    ),
    "size": ("#" * 300_000, "larger than the 262144 bytes"),
    "object": ("seed: !!python/object/apply:os.system ['touch marker']", "could not determine a constructor"),
    "name": ("seed: !!python/name:os.system", "could not determine a constructor"),
    "class": ("model: {class_path: os.system, init_args: {command: touch marker}}", "class_path"),
    "digits": (f"seed: {'9' * 5000}", "4300 digits"),
    "no such value": ("seed: !!int ''", "YAML"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused_at_once(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = HOSTILE_YAML[name]
    path = tmp_path / "given.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, "program", ["--config", str(path), "data.train=x"])
    assert re.search(message, capsys.readouterr().err)
    if name != "class":
        with pytest.raises(ValueError, match=f"given.yaml.*{message}"):
            load_yaml_file(path)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "marker").exists()


def test_a_fifo_is_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "given.yaml")
    with pytest.raises(ValueError, match="it is no regular file"):
        load_yaml_file(tmp_path / "given.yaml")


def test_honest_aliases_are_kept() -> None:
    assert load_yaml("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}") == {
        "a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": {"x": [1, 2], "y": 3},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../secret", "a/../../b", "nul\0"])
def test_a_checkpoint_lists_files_of_its_own(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    state = {
        "step": 1,
        "world_size": 1,
        "zero_stage": 0,
        "torch": "",
        "deepspeed": "",
        "files": {name: [1, "0"]},
    }
    write_sealed(folder / "state.json", state)
    with pytest.raises(CheckpointError, match=r"lists '.*', which is no file within the checkpoint"):
        newest_sound_checkpoint(tmp_path, World(0, 1, torch.device("cpu")))
    assert folder.is_dir()


def test_weights_of_a_checkpoint_that_are_none_are_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, CheckpointState(1, 1, 0, "", ""))
    torch.save({"a": 1}, checkpoint.weights)
    with pytest.raises(CheckpointError, match=r"model.safetensors can't be read as safetensors"):
        check_model(checkpoint, torch.nn.Linear(1, 1))


def test_records_that_hold_no_numbers_are_left_out(tmp_path: Path) -> None:
    lines = [
        "[" * 100_000,
        '{"step": ' + "9" * 5000 + "}",
        '{"step": "x"}',
        '{"step": 1' + "0" * 400 + "}",
        "[]",
    ]
    lines += ['{"step": 3, "train/loss": 1.5, "val/x": "text", "val/y": null}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    [record] = read_metrics(tmp_path)
    assert record.keys() == {"step", "train/loss", "val/y"}
    _keep_records(tmp_path / "metrics.jsonl", 9)
    assert read_metrics(tmp_path)[0]["train/loss"] == 1.5


@pytest.mark.parametrize("content", ["[" * 100_000, '{"1": 2}', '["x"]', "[" + "9" * 5000 + "]"], ids=len)
def test_steps_to_be_skipped_are_a_list_of_steps(tmp_path: Path, content: str) -> None:
    (tmp_path / "skipped_steps.json").write_text(content)
    trainer: Any = Trainer.__new__(Trainer)
    trainer.run = tmp_path
    with pytest.raises(CheckpointError, match=r"skipped_steps.json is damaged"):
        trainer._read_skipped()


def test_a_seed_fits_64_bits(capsys) -> None:
    for digits, message in (
        (20, "seed is an integer of more than 64 bits; it must fit"),
        (100_000, "for integer"),
    ):
        with pytest.raises(SystemExit):
            parse_config(PretrainConfig, "program", ["data.train=x", "seed=0x" + "f" * digits])
        assert message in capsys.readouterr().err
