"""What was fine-tuned predicts: the same as its evaluation, also for clips that lack something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.processes import run_ranks
from support.shards import make_shards

from datasets.batch import AVBatch
from datasets.loading.config import DataConfig
from datasets.loading.loader import evaluation_loader
from engine.tasks.finetune import open_predictor

MODEL = ["model.name=cav_mae_tiny", "model.image_size=32", "model.audio_length=32", "model.num_mel_bins=32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    shards = make_shards(folder / "shards", 10, 5, seconds=0.35, frames=3)
    words = [
        f"output_dir={folder / 'run'}", f"data.train={shards}", f"data.val={shards}", "data.num_workers=0", *MODEL,
        "model.embed_dim=24", "model.num_heads=2", "model.modality_depth=1", "objective.loss=cross_entropy",
        "train.steps=2", "train.log_interval=1", "train.parallel.global_batch_size=4", "evaluation.bootstrap=0",
        "evaluation.pictures=false", "evaluation.batch_size=4", "train.parallel.precision=fp32",
        "train.eval_interval=1", "best=val/top1",
    ]  # fmt: skip
    assert run_ranks("support.labelled_runs:tune", 1, runs=[words]) == [[True]]
    return folder / "run"


def batches(run: Path, needs) -> list[AVBatch]:
    data = DataConfig(str(run.parent / "shards"), num_workers=0)
    return list(evaluation_loader(data, run.parent / "shards", needs, batch_size=4))


def test_a_classifier_predicts_what_its_evaluation_says(run: Path):
    torch.set_num_threads(1)
    for name, source in {"last": run, "best": run / "best"}.items():
        predictor = open_predictor(source)
        assert predictor.heads == {"classes": ["class 0", "class 1", "class 2"]}
        found = torch.cat([predictor.predict(batch)["classes"] for batch in batches(run, predictor.needs)])
        stored = np.load(run / "evaluation" / name / "predictions.npz")
        assert torch.equal(found, torch.from_numpy(stored["scores_audio_visual_ensemble"]))


def test_what_a_clip_lacks_is_left_out(run: Path):
    predictor = open_predictor(run / "checkpoints" / "step_00000002")
    batch = batches(run, predictor.needs)[0]
    assert batch.num_samples is not None
    assert batch.num_stored is not None
    whole = predictor.predict(batch)["classes"]
    some = replace(
        batch,
        num_samples=batch.num_samples * torch.tensor([0, 1, 1, 1]),
        num_stored=batch.num_stored * torch.tensor([1, 0, 1, 1]),
    )
    found = predictor.predict(some)["classes"]
    assert not torch.isclose(found[:2], whole[:2], atol=1e-5).any()
    torch.testing.assert_close(found[2:], whole[2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    nothing = replace(some, num_stored=batch.num_stored * 0)
    with pytest.raises(ValueError, match="clip-00000 has nothing that the model takes"):
        predictor.predict(nothing)


def test_a_folder_that_is_no_run_on_labels_is_named(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"is no run of main_finetune.py and in none: it has no classes.json"
    ):
        open_predictor(tmp_path)
