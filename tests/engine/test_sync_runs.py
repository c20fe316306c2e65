"""Runs of TG-DP, and what its encoders are used for after it; the recipes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run_ranks
from support.shards import make_shards

from engine.checkpoints.weights import load_weights
from engine.config import PretrainConfig, parse_config
from engine.objectives.cav_mae_sync import CavMaeSyncConfig
from engine.objectives.tg_dp import TgDpConfig
from engine.records.runlog import read_metrics
from models import CavMaeSyncEncoder, load_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    shards = make_shards(folder / "shards", 12, 6, seconds=0.7, size=(48, 40), frames=3)
    (done,) = run_ranks("support.sync_runs:pretrain_and_finetune", 1, shards=str(shards), folder=str(folder))
    assert done == [True, True]
    return folder


def test_a_pretraining_run_measures_pairs_and_keeps_the_teacher_apart(folder):
    records = read_metrics(folder / "tg_dp")
    assert {"train/loss_distillation", "train/loss_contrastive", "train/loss_mae_audio"} <= set(
        records[-1] | records[-2]
    )
    held_out = [record for record in records if "val/retrieval_a2v_r1" in record]
    assert held_out[-1]["val/retrieval_chance_r1"] == pytest.approx(1 / 12)
    assert {name.split(".")[0] for name in load_weights(folder / "tg_dp")} == {"encoder", "decoder"}
    pictures = {path.name for path in (folder / "tg_dp" / "pictures").iterdir()}
    assert "reconstruction_frames_00000002.png" in pictures


def test_its_encoders_are_fine_tuned_probed_and_loaded(folder):
    report = json.loads(next((folder / "tuned" / "evaluation").glob("*/metrics.json")).read_text())
    assert report["clips"] == 12
    assert any(name.startswith("linear_audio_visual") for name in report["frozen_features"])
    encoders = load_pretrained(folder / "tg_dp")
    assert isinstance(encoders.encoder, CavMaeSyncEncoder)
    found = encoders(torch.randn(2, 9000) / 10, None, torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8))
    assert found.joint is not None
    assert found.joint.shape == (2, 24)


@pytest.mark.parametrize(
    ("name", "kind", "lr", "batch", "weight", "norm_pix"),
    [
        ("audioset_cav_mae_sync", CavMaeSyncConfig, 2e-4, 512, 0.1, True),
        ("vggsound_cav_mae_sync", CavMaeSyncConfig, 5e-5, 1008, 0.01, False),
        ("audioset_tg_dp", TgDpConfig, 2e-4, 512, 0.1, True),
        ("vggsound_tg_dp", TgDpConfig, 5e-5, 1008, 0.1, True),
    ],
)
def test_recipes_have_the_numbers_of_their_sources(name, kind, lr, batch, weight, norm_pix):
    recipe: Any = parse_config(PretrainConfig, "test", ["--config", f"configs/{name}.yaml"])[0]
    assert type(recipe.objective) is kind
    assert (recipe.optimizer.lr, recipe.optimizer.betas) == (lr, (0.95, 0.999))
    assert (recipe.train.parallel.global_batch_size, recipe.train.epochs) == (batch, 25)
    assert recipe.objective.contrast_weight == weight
    assert recipe.objective.frames == 16
    assert recipe.model.norm_pix_loss == norm_pix
    assert (recipe.model.segment_length, recipe.model.num_registers) == (416, 8)


@pytest.mark.parametrize("name", ["pretrain_cav_mae_sync_tiny", "pretrain_tg_dp_tiny"])
def test_tiny_recipes_are_valid(name):
    recipe, _ = parse_config(PretrainConfig, "test", ["--config", f"configs/{name}.yaml"])
    assert recipe.model.name == "cav_mae_sync_tiny"
