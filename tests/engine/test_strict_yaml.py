"""A key that is given twice is an error with both lines, in run configs and launch files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import PretrainConfig, parse_config
from launch.submit import main as submit
from strict_yaml import check_keys, contradictions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  steps: 5\nseed: 1\ntrain:\n  epochs: 2\n", "'train' is given twice, in lines 1 and 4"),
        ("optimizer: {lr: 1.0e-3, lr: 5.0e-3}\n", "'optimizer.lr' is given twice, in lines 1 and 1"),
        ("train:\n  steps: 5\ntrain.steps: 7\n", "'train.steps' is given twice, in lines 2 and 3"),
        ('seed: 1\n"seed": 2\n', "'seed' is given twice, in lines 1 and 2"),
        ("sweep:\n- {a: 1, a: 2}\n", r"'sweep\.0\.a' is given twice"),
    ],
)
def test_a_key_given_twice(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_keys(text)


def test_anchors_and_merges_are_no_second_keys():
    check_keys("base: &base {a: 1}\none:\n  <<: *base\n  a: 2\ntwo: *base\nitems: [{a: 1}, {a: 2}]\n")


def test_both_programs_refuse_it(tmp_path: Path, capsys):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nenvironment: {A: 1}\nenvironment: {B: 2}\n")
    assert submit(["--config", str(path), "--", "main_pretrain.py"]) == 2
    assert f"{path}: key 'environment' is given twice, in lines 2 and 3" in capsys.readouterr().err
    path.write_text("data: {train: x}\ntrain: {steps: 1}\ntrain: {epochs: 2}\n")
    for arguments in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(SystemExit):
            parse_config(PretrainConfig, "program", arguments)
        assert f"{path}: key 'train' is given twice, in lines 2 and 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, "program", ["data.train=x", "--optimizer", "{lr: 1, lr: 2}"])
    assert "'lr' is given twice" in capsys.readouterr().err
    path.write_bytes("seed: 1\n".encode("utf-16"))
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, "program", ["--config", str(path)])
    assert "is UTF-16; save it as UTF-8" in capsys.readouterr().err


def test_overrides_that_contradict_each_other_are_said():
    words = ["--config", "a", "--config", "b", "train.steps=5", "--train", "{steps: 7}", "seed=1", "--seed=1"]
    assert list(contradictions(words)) == ["train.steps and train are both given; the later one holds"]
    assert list(contradictions(["seed=1", "--seed", "2"])) == [
        "seed is given twice, with different values; the later one holds"
    ]
