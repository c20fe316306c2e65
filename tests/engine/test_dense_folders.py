"""The recipe of the max-mean baseline, three steps of it, on small random HuBERT and DINOv2 folders and real shards."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.processes import run_program
from support.runs import PRETRAIN, ROOT
from support.shards import make_shards

from engine.checkpoints.folder import find_checkpoints
from engine.ground.grounder import Grounder

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def save_folders(folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    hubert = transformers.HubertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16),
        conv_kernel=(10, 4), conv_stride=(160, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    dinov2 = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    for name, model in (
        ("hubert", transformers.HubertModel(hubert)),
        ("dinov2", transformers.Dinov2Model(dinov2)),
    ):
        model.save_pretrained(folder / name)
    return folder / "hubert", folder / "dinov2"


def pretrain(run: Path, shards: Path, sources: tuple[Path, Path], *more: str) -> subprocess.CompletedProcess:
    settings = [
        f"output_dir={run}", f"data.train={shards}", f"data.val={shards}", "data.num_workers=0",
        f"model.audio.source={sources[0]}", f"model.visual.source={sources[1]}", "model.image_size=28",
        "model.embed_dim=16", "train.steps=3", "train.log_interval=1", "train.parallel.global_batch_size=4",
        "objective.audio_from_epoch=0.2", "objective.visual_from_epoch=0.4", *more,
    ]  # fmt: skip
    return run_program(PRETRAIN, "--config", str(ROOT / "configs/dense_hubert_dinov2.yaml"), *settings)


def test_three_steps_of_the_baselines_recipe(tmp_path):
    sources = save_folders(tmp_path)
    shards = make_shards(tmp_path / "shards", 12, 12)
    done = pretrain(tmp_path / "run", shards, sources, "train.eval_interval=3", "picture_interval=2")
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = {record["step"]: record for record in records if "train/loss" in record}
    assert sorted(steps) == [1, 2, 3]
    rates = [
        [steps[n][f"train/lr_{tower}_tower_decay"] > 0 for n in (1, 2, 3)] for tower in ("audio", "visual")
    ]
    assert rates == [[False, True, True], [False, False, True]]
    assert any("val/retrieval_a2v_r1" in record for record in records)
    shown = sorted(path.name for path in (tmp_path / "run" / "pictures").rglob("*.png"))
    assert [name[-5:] for name in shown] == ["0.png", "2.png", "3.png"]
    grounder = Grounder.open(tmp_path / "run")
    heat = grounder.heat_of(
        torch.zeros(8000, dtype=torch.int16), torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
    )
    assert heat.shape == (1, 2, 2)


def test_low_rank_updates_of_folders_are_trained_alone(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    sources = save_folders(tmp_path)
    lora = [
        f"model.{tower}.lora.{word}"
        for tower in ("audio", "visual")
        for word in ("rank=2", "layers=[q_proj,v_proj]")
    ]
    done = pretrain(tmp_path / "run", make_shards(tmp_path / "shards", 12, 12), sources, *lora)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = load_file(find_checkpoints(tmp_path / "run")[-1].path / "model.safetensors")
    for tower in ("audio", "visual"):
        moved = [
            name
            for name, value in trained.items()
            if f"{tower}_tower" in name and "lora_B" in name and value.any()
        ]
        assert len(moved) == 4  # of two layers, two each; B is zero at the start
    kept = {
        name.replace(".base_layer", ""): value for name, value in trained.items() if "audio_tower" in name
    }
    for name, value in load_file(sources[0] / "model.safetensors").items():
        if name.startswith("encoder.layers."):
            assert [torch.equal(other, value) for there, other in kept.items() if there.endswith(name)] == [
                True
            ]


def test_wrong_folders_are_named_in_a_line(tmp_path):
    sources = save_folders(tmp_path)
    shards = make_shards(tmp_path / "shards", 12, 12)
    done = pretrain(tmp_path / "run", shards, (sources[1], sources[1]))
    assert done.returncode == 1
    assert "holds a dinov2 model; wanted is hubert or wav2vec2" in done.stderr
    assert "Traceback" not in done.stderr
