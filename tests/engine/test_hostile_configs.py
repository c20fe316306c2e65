"""Configs and run folders that others made: a command in one is not run, and no link in one is written through."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomic import refuse_links, write_atomically
from engine.config import ALLOW_COMMANDS, PretrainConfig, parse_config, save_config


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
    write_atomically(run / "evaluation.yaml", "x")
    refuse_links(run)
    refuse_links(tmp_path / "not there yet")
