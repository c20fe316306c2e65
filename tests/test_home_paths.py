"""``~`` and ``$HOME`` mean the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.stats import main as stats
from engine.config import PretrainConfig, parse_config
from home_paths import command_line, expand_home, expand_values


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~/a", "/home/me/a"),
        ("~", "/home/me"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}/a", "/home/me/a"),
        ("output_dir=~/a", "output_dir=/home/me/a"),
        ("--data.train=$HOME/a", "--data.train=/home/me/a"),
        ("timm:vit_base.mae:~/a", "timm:vit_base.mae:/home/me/a"),
        ("a~/b", "a~/b"),
        ("a/~", "a/~"),
        ("$HOMES/a", "$HOMES/a"),
        ("decoder.*", "decoder.*"),
    ],
)
def test_expansion(monkeypatch, text: str, expanded: str):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(text) == expanded
    assert command_line([text]) == [expanded]
    assert expand_values({"a": [{"b": text}], "c": 1}) == {"a": [{"b": expanded}], "c": 1}


def test_config_files_and_command_lines(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("output_dir: ~/runs/y\ndata: {train: $HOME/set, val: '${HOME}/val'}\n")
    config, text = parse_config(
        PretrainConfig, "program", ["--config", "~/run.yaml", "data.cache_dir=~/cache"]
    )
    assert config.output_dir == f"{tmp_path}/runs/y"
    assert (config.data.train, config.data.val) == (f"{tmp_path}/set", f"{tmp_path}/val")
    assert config.data.cache_dir == f"{tmp_path}/cache"
    assert "~" not in text
    with pytest.raises(SystemExit, match=f"{tmp_path}/nothing"):
        stats(["~/nothing"])
