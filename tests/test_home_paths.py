"""``~`` and ``$HOME`` mean the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datasets.stats import main as stats
from engine.config import PretrainConfig, parse_config
from engine.objectives.classification import LossName, Modalities
from engine.tasks.finetune_config import FinetuneConfig
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


def test_members_of_enumerations_stay_what_they_are():
    """A plain text in the place of one is another value to whoever compares by identity."""
    config, _ = parse_config(FinetuneConfig, "test", ["data.train=~/set", "output_dir=run"])
    assert config.data.train == os.path.expanduser("~/set")
    assert config.objective.modalities is Modalities.audio_visual
    assert config.objective.loss is LossName.bce
