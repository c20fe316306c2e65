"""Preflight: what it finds wrong, and that its estimates are the right arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.shards import make_shards
from support.training import make_batch, small_model_config
from torch import Tensor

from datasets.loading.loader import DataConfig
from engine.config import PretrainConfig
from engine.objectives.base import Objective
from engine.objectives.cav_mae import CavMae, CavMaeConfig
from engine.parallel.deepspeed_engine import BUCKET, ParallelConfig
from engine.preflight import checks
from engine.preflight.checks import Cluster, Report, main, planned_pretraining
from engine.preflight.estimates import state_bytes
from engine.training.train_config import TrainConfig
from models import AudioVisualMAE, FbankConfig
from models.cav_mae.workload import activation_bytes
from models.layers import blocks


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), 12, 4)


def check(
    shards: Path, run: Path, cluster: Cluster | None = None, keep: int = 2, global_batch_size: int = 8
) -> Report:
    model = small_model_config()
    config = PretrainConfig(
        data=DataConfig(train=str(shards)),
        output_dir=str(run),
        model=model,
        fbank=FbankConfig(target_length=model.audio_length, num_mel_bins=model.num_mel_bins),
        train=TrainConfig(
            epochs=4, keep_checkpoints=keep, parallel=ParallelConfig(global_batch_size=global_batch_size)
        ),
    )
    return checks.check(planned_pretraining(config), cluster or Cluster(nodes=2, processes=2))


def test_a_sound_run_passes(shards, tmp_path):
    report = check(shards, tmp_path / "run")
    assert report.problems == []
    assert "8 = 2 clips × 1 micro-batches × 2 nodes × 2 processes" in str(report)
    assert "12 clips" in str(report)
    assert "6 steps, 4.0 epochs, 48 clips" in str(report)


def test_an_indivisible_batch(shards, tmp_path):
    (problem,) = check(shards, tmp_path / "run", Cluster(nodes=3)).problems
    assert "8" in problem
    assert "3 processes" in problem


def test_too_few_clips(shards, tmp_path):
    (problem,) = check(shards, tmp_path / "run", global_batch_size=16).problems
    assert problem.startswith("12 clips")


def test_too_little_memory(shards, tmp_path):
    (problem,) = check(shards, tmp_path / "run", Cluster(memory_gb=1e-4)).problems
    assert "accumulation_steps" in problem


def test_too_little_disk(shards, tmp_path):
    (problem,) = check(shards, tmp_path / "run", keep=10**9).problems
    assert "are free" in problem


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_shard_that_is_not_as_the_index_says(tmp_path, damage):
    folder = make_shards(tmp_path / "shards", 12, 4)
    shard = sorted(folder.glob("*.tar"))[1]
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-512])
    (problem,) = check(folder, tmp_path / "run").problems
    assert shard.name in problem


def test_state_by_zero_stage():
    found = [state_bytes(1000, 1000, 4, stage, bf16=False) for stage in (0, 1, 2)]
    bucket = 4 * BUCKET
    assert found == [4 * 4000 + 4000, 4000 + 4000 + 3000 + bucket, 4000 + 1000 + 3000 + bucket]
    assert state_bytes(1000, 1000, 4, 1, bf16=False, overlap_comm=True) == found[1] + bucket
    assert state_bytes(1000, 0, 1, 0, bf16=True) == 6000  # a frozen model


def saved_bytes(objective: Objective, clips: int) -> int:
    """Bytes that autograd keeps of a forward pass, weights aside; each storage once."""
    saved = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values = objective(make_batch(list(range(clips))))  # kept, so that no storage is used twice
    assert values["loss"].requires_grad
    return sum(size for pointer, size in saved.items() if pointer not in weights)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("reconstruct", "contrast"), [(1, 1), (1, 0), (0, 1)])
def test_activations_are_those_that_autograd_keeps(monkeypatch, bf16, reconstruct, contrast):
    """Of so few tokens that the losses count too; ViT-B by the same measurement is in benchmarks/results."""
    # What a GPU does: on a CPU in bfloat16 attention is not fused.
    monkeypatch.setattr(blocks, "attend", F.scaled_dot_product_attention)
    sizes = {"embed_dim": 128, "decoder_embed_dim": 64, "modality_depth": 2, "decoder_depth": 2}
    model = small_model_config(**sizes)
    settings = CavMaeConfig(reconstruction_weight=reconstruct, contrast_weight=contrast)
    fbank = FbankConfig(target_length=model.audio_length, num_mel_bins=model.num_mel_bins)
    objective = CavMae(AudioVisualMAE(model), fbank, settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        measured = (saved_bytes(objective, 48) - saved_bytes(objective, 16)) / 32
    assert objective.workload(bf16).activations == pytest.approx(measured, rel=0.1)


def test_checkpointing_keeps_less():
    plain, saving = small_model_config(), small_model_config(activation_checkpointing=True)
    full, less = (activation_bytes(model, 10, 2, bf16=True, decode=True) for model in (plain, saving))
    assert 0 < less < full


def test_exit_status(shards, tmp_path, capsys):
    # The tiny model, whose checkpoints fit on any disk.
    data = [f"data.train={shards}", f"output_dir={tmp_path}", "model.name=cav_mae_tiny"]
    run = ["--", "main_pretrain.py", *data]
    assert main(["--processes=2", *run, "train.parallel.global_batch_size=8"]) == 0
    assert main(["--processes=2", *run]) == 1
    tuning = ["--", "main_finetune.py", *run[2:], "train.parallel.global_batch_size=8"]
    assert main(["--processes=2", *tuning]) == 0
    sizes = ["model.image_size=32", "model.audio_length=32", "model.num_mel_bins=32"]
    fusion = [*tuning[:2], *data[:2], *tuning[-1:], "objective.kind=fusion", *sizes]
    seen_and_heard = [*fusion, "model.modalities=[audio, visual]"]
    assert main(["--processes=2", *seen_and_heard]) == 0
    capsys.readouterr()
    assert main(["--processes=2", *fusion, "model.text.source=none"]) == 1
    assert "! model       model.text.source none does not exist" in capsys.readouterr().out
    assert main(["--processes=2", *fusion]) == 1
    assert "! labels      model.modalities names text, and no clip of" in capsys.readouterr().out
    assert main(["--processes=2", *seen_and_heard, "objective.heads=[{task: emotion}]"]) == 1
    assert "! labels      objective.heads: task 'emotion' has 0 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main([*run, "data.trian=x"])
    assert wrong.value.code == 2
    assert "data.train" in capsys.readouterr().err
