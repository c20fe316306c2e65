"""The interface is open: an objective, a family and a teacher from outside the packages train, resume, export.

No file of Earsight names them. The commands run in processes of their own, since what is registered stays registered.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.processes import run_world
from support.shards import make_shards

from engine.checkpoints.folder import find_checkpoints
from engine.records.runlog import read_metrics

SETTINGS = [
    "objective.kind=teaching", "model.image_size=32", "model.audio_length=64", "model.num_mel_bins=32",
    "data.num_workers=0", "train.log_interval=1", "train.checkpoint_interval=3", "train.eval_interval=3",
    "train.parallel.global_batch_size=8", "optimizer.lr=1e-2", "schedule.kind=constant",
]  # fmt: skip


def run(program: str, *words: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    done = run_world("-m", "support.own_main", program, *words, world_size=ranks)
    return max(done, key=lambda rank: abs(rank.returncode))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), 24, 8)


def losses(folder: Path) -> list[float]:
    return [record["train/loss"] for record in read_metrics(folder) if "train/loss" in record]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    data = [f"data.train={shards}", f"data.val={shards}", f"output_dir={folder}"]
    done = run("pretrain", *SETTINGS, *data, "train.steps=6")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_it_trains_evaluates_and_draws(whole: Path):
    assert len(losses(whole)) == 6
    assert losses(whole)[-1] < losses(whole)[0]
    assert any("val/retrieval_a2v_r1" in record for record in read_metrics(whole))
    assert list((whole / "pictures").glob("own_first_frame_*.png"))


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_it_resumes_exactly_in_another_world(whole: Path, shards: Path, tmp_path: Path, zero_stage: int):
    data = [f"data.train={shards}", "data.val=null", f"output_dir={tmp_path / 'run'}"]
    data += [f"train.parallel.zero_stage={zero_stage}", "train.eval_interval=0"]
    for steps, ranks in ((3, 2), (6, 1)):
        done = run("pretrain", *SETTINGS, *data, f"train.steps={steps}", ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)


def test_the_teacher_is_in_the_checkpoint_and_not_in_the_weights(whole: Path, tmp_path: Path):
    from safetensors import safe_open

    newest = find_checkpoints(whole)[-1]
    assert newest.state.objective == "teaching"
    assert newest.state.beside_model == ("teacher",)
    with safe_open(newest.weights, "pt") as file:
        names = set(file.keys())
    assert names == {f"encoder.{m}.{k}" for m in ("audio", "visual") for k in ("weight", "bias")}
    done = run("export", str(whole), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_preflight_knows_it(shards: Path, tmp_path: Path):
    data = [f"data.train={shards}", f"output_dir={tmp_path}"]
    done = run("preflight", "--", "main_pretrain.py", *SETTINGS, *data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FLOP a clip" in done.stdout


def test_a_checkpoint_of_another_objective_is_named_with_both(whole: Path, shards: Path):
    small = [
        "model.name=cav_mae_tiny",
        "model.image_size=32",
        "model.audio_length=64",
        "model.num_mel_bins=32",
    ]
    done = run(
        "pretrain",
        *small,
        f"data.train={shards}",
        f"output_dir={whole}",
        "train.parallel.global_batch_size=8",
    )
    assert done.returncode == 1
    assert "is of the objective teaching, this run is of cav_mae" in done.stderr
