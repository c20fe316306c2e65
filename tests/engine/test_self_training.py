"""Rounds of self-training, from a first stage on; what is wrong is said before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.processes import run_ranks
from support.self_training import SMALL, STAGE_1, STAGE_2, train_first_stage
from support.shards import make_shards

from engine.checkpoints.folder import find_checkpoints
from engine.config import parse_config
from engine.parallel.world import World
from engine.records.runlog import read_metrics
from engine.self_training import SelfTrainingConfig
from models.weights.tensor_files import read_file


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), 12, 6, seconds=0.7, size=(48, 40), frames=3)


def test_each_round_learns_from_the_one_before(shards, tmp_path):
    (found,) = run_ranks("support.self_training:rounds_apart", 1, shards=str(shards), folder=str(tmp_path))
    assert found == {"first": True, "one": True, "two": True, "stopped": False}
    for number in (1, 2):
        one = tmp_path / "rounds" / f"round_{number}"
        assert len(losses(one)) == 6  # the first round was not trained twice
        (kept,) = (one / "teacher").iterdir()
        source = tmp_path / "first" if number == 1 else tmp_path / "rounds" / "round_1"
        expected = read_file(find_checkpoints(source)[-1].weights).tensors
        found = read_file(kept).tensors
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        config = (one / "config.yaml").read_text()
        assert f"teacher: {source}" in config
        assert "rounds:" not in config

    # Stopped in the middle of a round, and gone on with by two processes: as if nothing had been.
    assert 2 <= len(losses(tmp_path / "stopped" / "round_2")) < 6
    rest = run_ranks("support.self_training:the_rest", 2, shards=str(shards), folder=str(tmp_path))
    assert rest == [True, True]
    for number in (1, 2):
        expected = losses(tmp_path / "rounds" / f"round_{number}")
        assert losses(tmp_path / "stopped" / f"round_{number}") == pytest.approx(expected, rel=1e-5)


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in read_metrics(run) if "train/loss" in record]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([STAGE_2, "objective.teacher=x", "rounds=0"], "rounds is 0"),
        ([STAGE_2], "objective.teacher is not given"),
        (
            [STAGE_2, "objective.teacher=x", "objective.inter_temperature=0"],
            "inter_temperature is 0.0: it must be",
        ),
        ([STAGE_1], "objective.kind mavil has no teacher"),
        ([STAGE_2, "objective.teacher=x", "model.name=cav_mae_tiny"], "unrecognized|trains models of mavil"),
    ],
)
def test_wrong_settings_end_the_program(capsys, words, message):
    small = SMALL if "model.name=cav_mae_tiny" not in words else []
    with pytest.raises(SystemExit) as ended:
        parse_config(SelfTrainingConfig, "engine.self_training", [*small, "data.train=x", *words])
    assert ended.value.code == 2
    found = capsys.readouterr().err
    assert any(part in found for part in message.split("|")), found


def test_too_few_frames_are_named(shards, tmp_path):
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"(?s)frames.*8"):
        train_first_stage(world, f"data.train={shards}", f"output_dir={tmp_path / 'run'}", "model.frames=8")
    assert not (tmp_path / "run").exists()
