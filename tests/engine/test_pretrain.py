"""The pretraining program as a user runs it: alone, under torchrun, resumed, and given wrong input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import environment, run_program
from support.shards import make_shards

from engine.checkpoints.folder import find_checkpoints
from engine.checkpoints.weights import load_weights
from engine.records.runlog import read_metrics

PROGRAM = str(Path(__file__).resolve().parents[2] / "main_pretrain.py")
STEPS = 6
SETTINGS = [
    "model.name=cav_mae_tiny", "model.image_size=32", "model.audio_length=64", "model.embed_dim=24",
    "model.num_heads=2",
    "model.modality_depth=1", "model.decoder_embed_dim=16", "model.decoder_depth=1", "model.decoder_num_heads=2",
    "train.log_interval=1", "train.parallel.global_batch_size=8", "schedule.kind=constant", "optimizer.lr=1e-3",
    "objective.contrast_weight=0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 clips: an epoch is two and a half steps, so batches straddle epochs."""
    folder = tmp_path_factory.mktemp("data")
    return make_shards(folder, 20, 6, seconds=0.7, size=(48, 40), frames=3)


def pretrain(*words: str) -> subprocess.CompletedProcess[str]:
    return run_program(PROGRAM, *SETTINGS, *words)


def pretrain_afresh(*words: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """As a shell starts it: nothing is imported yet."""
    command = [sys.executable, *launcher, PROGRAM, *SETTINGS, *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)


def losses(run: Path) -> list[float]:
    return [record["train/loss"] for record in read_metrics(run) if "train/loss" in record]


def held_out(run: Path) -> list[dict[str, float]]:
    return [record for record in read_metrics(run) if "val/retrieval_a2v_r1" in record]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    result = pretrain_afresh(
        f"data.train={shards}", f"data.val={shards}", f"output_dir={run}", f"train.steps={STEPS}", "data.num_workers=1",
        "train.eval_interval=3",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return run


def test_a_run_from_shards_to_weights_and_pictures(whole: Path) -> None:
    assert len(losses(whole)) == STEPS
    assert [record["step"] for record in held_out(whole)] == [0, 3, 6]
    assert held_out(whole)[0]["val/retrieval_chance_r1"] == pytest.approx(1 / 20)
    assert {"encoder", "decoder"} == {name.split(".")[0] for name in load_weights(whole)}
    names = {path.name for path in (whole / "pictures").iterdir()}
    assert {f"reconstruction_{kind}_00000006.png" for kind in ("frames", "spectrograms")} <= names
    assert (whole / "config.yaml").is_file()


def test_resumed_mid_epoch_with_other_workers(whole: Path, shards: Path, tmp_path: Path) -> None:
    words = [f"data.train={shards}", f"output_dir={tmp_path}"]
    assert pretrain(*words, "train.steps=3", "data.num_workers=2").returncode == 0
    second = pretrain(*words, f"train.steps={STEPS}", "data.num_workers=0")
    assert second.returncode == 0, second.stderr
    assert "resuming at step 3" in second.stderr
    assert "train.steps: 3 → 6" in second.stderr
    assert losses(tmp_path) == losses(whole)


def test_two_processes_give_the_curve_of_one(whole: Path, shards: Path, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    words = [f"data.train={shards}", f"data.val={shards}", "train.eval_interval=3", "data.num_workers=1"]
    result = pretrain_afresh(*words, f"output_dir={tmp_path}", f"train.steps={STEPS}", launcher=torchrun)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
    assert held_out(tmp_path)[0] == pytest.approx(held_out(whole)[0], rel=1e-6)


def test_wrong_input_is_named(whole: Path, shards: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ([f"data.train={tmp_path}/absent"], "absent"),
        ([f"data.train={empty}"], "index.json"),
        (
            [f"data.train={shards}", "train.parallel.global_batch_size=64"],
            "20 clips, fewer than one global batch of 64",
        ),
        (
            [f"data.train={shards}", "train.parallel.accumulation_steps=3"],
            "global_batch_size 8 does not divide by 3",
        ),
        (
            [f"data.train={shards}", f"output_dir={whole}", "model.decoder_depth=2"],
            "Changed since: model.decoder_depth",
        ),
    ]
    kept = (whole / "config.yaml").read_text()
    for words, message in cases:
        result = pretrain(f"output_dir={tmp_path / 'run'}", *words)
        assert result.returncode == 1, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert find_checkpoints(whole)[-1].state.step == STEPS
    assert (whole / "config.yaml").read_text() == kept
