"""Fine-tuning in real processes: the same predictions for every number of ranks, exact resume, what it leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.finetuning import BATCH, predict_here
from support.processes import run_ranks
from support.shards import make_shards

from engine.checkpoints.folder import find_checkpoints
from engine.checkpoints.weights import load_weights
from engine.evaluation.scores import class_scores, summary_scores
from engine.parallel.world import World
from engine.records.runlog import read_metrics
from engine.training.schedule import ScheduleConfig, lr_factor

#: Uneven: the last of six batches of 4 has 3 clips, and three ranks have two batches each.
NUM_CLIPS = 23
STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("labelled"), NUM_CLIPS, 9, seconds=0.35, frames=3)


def lose_newest(run: Path) -> None:
    """As if the run of 7 steps had been killed before its last checkpoint was written."""
    newest = find_checkpoints(run)[-1]
    assert newest.state.step == 7
    shutil.rmtree(newest.path)
    assert find_checkpoints(run)[-1].state.step == 6


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory) -> Path:
    """``whole`` in one go; the others in two, the second after steps were taken past the checkpoint.

    ``resumed`` in one process, ``1to2`` and ``2to1`` go on in another number of them.
    """
    folder = tmp_path_factory.mktemp("runs")
    common = {"shards": str(shards)}
    resumed, whole = {**common, "run": str(folder / "resumed")}, {**common, "run": str(folder / "whole")}
    cosine = {**common, "run": str(folder / "cosine"), "cosine": True, "steps": 5, "layer_decay": 0.5}
    tuned = "support.finetuning:tune"
    grows = {**common, "run": str(folder / "1to2"), "zero_stage": 2}
    shrinks = {**common, "run": str(folder / "2to1")}
    first = [
        {**resumed, "steps": 7},
        {**grows, "steps": 7},
        {**whole, "steps": STEPS, "evaluation": {"frozen_features": True, "pictures": True}},
    ]
    assert run_ranks(tuned, 1, runs=first) == [[True] * 3]
    lose_newest(folder / "resumed")
    lose_newest(folder / "1to2")
    second = [cosine, {**grows, "steps": STEPS}, {**shrinks, "steps": 7}]
    assert run_ranks(tuned, 2, runs=second) == [[True] * 3] * 2
    lose_newest(folder / "2to1")
    third = [{**resumed, "steps": STEPS}, {**shrinks, "steps": STEPS}]
    assert run_ranks(tuned, 1, runs=third) == [[True] * 2]
    return folder


def test_predictions_are_bit_equal_for_one_two_and_three_ranks(shards: Path):
    alone = predict_here(str(shards), World(0, 1, torch.device("cpu")))
    assert alone is not None
    assert alone["ids"] == [f"clip-{i:05d}" for i in range(NUM_CLIPS)]
    assert alone["rows"].tolist() == list(range(NUM_CLIPS))
    expected = ["audio", "audio_visual", "audio_visual_ensemble", "visual", "visual_ensemble"]
    assert list(alone["scores"]) == expected
    for world_size in (2, 3):
        main, *others = run_ranks("support.finetuning:predictions", world_size, shards=str(shards))
        assert others == [None] * (world_size - 1)
        assert main["ids"] == alone["ids"]
        assert torch.equal(main["labels"], alone["labels"])
        for name, scores in alone["scores"].items():
            assert torch.equal(main["scores"][name], scores), (world_size, name)


def test_resume_is_exact(runs: Path):
    whole, resumed = (read_metrics(runs / name) for name in ("whole", "resumed"))
    losses = [
        {r["step"]: r["train/loss"] for r in records if "train/loss" in r} for records in (whole, resumed)
    ]
    assert list(losses[0]) == list(range(1, STEPS + 1))
    assert losses[0] == losses[1]
    weights, again = (load_weights(runs / name) for name in ("whole", "resumed"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("name", ["1to2", "2to1"])
def test_resume_in_another_world(runs: Path, name: str):
    """The same clips, mixed and drawn alike, in another number of processes: equal to rounding."""
    whole, moved = (
        {r["step"]: r["train/loss"] for r in read_metrics(runs / run) if "train/loss" in r}
        for run in ("whole", name)
    )
    assert moved == pytest.approx(whole, rel=2e-5)
    # Not the weights: a key's bias has no gradient but rounding, of which Adam makes full steps.
    found, again = (np.load(runs / run / "evaluation/averaged/predictions.npz") for run in ("whole", name))
    np.testing.assert_allclose(again["scores_audio_visual"], found["scores_audio_visual"], atol=1e-4)


def test_averages_are_those_of_the_uninterrupted_run(runs: Path):
    files = [sorted((runs / name / "average").glob("epoch_*")) for name in ("whole", "resumed")]
    assert files[0][-1].name == files[1][-1].name == "epoch_0003.safetensors"
    weights, again = (safetensors.torch.load_file(found[-1]) for found in files)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    last = load_weights(runs / "whole")
    assert not torch.equal(weights["head.weight"], last["head.weight"])


def test_the_heads_rate_holds_in_every_step_of_every_schedule(runs: Path):
    for name in ("whole", "resumed"):
        records = [r for r in read_metrics(runs / name) if "train/loss" in r]
        schedule = ScheduleConfig(kind="halving", halve_from_epoch=1, halve_every_epochs=0.5)
        expected = [1e-3 * lr_factor(schedule, step, STEPS, NUM_CLIPS / BATCH) for step in range(STEPS)]
        assert [record["train/lr_decay"] for record in records] == expected
        assert len(set(expected)) == 5
        for record in records:
            assert record["train/lr_head_decay"] == pytest.approx(50 * record["train/lr_decay"])
            assert record["train/lr_head_no_decay"] == pytest.approx(50 * record["train/lr_no_decay"])
    records = [r for r in read_metrics(runs / "cosine") if "train/loss" in r]
    assert len(records) == 5
    for record in records:
        # Embeddings, one block of the modality, one joint block, norms: each half of what comes after it.
        ratios = [record[f"train/lr_layer{i:02d}_no_decay"] / record["train/lr_head_decay"] for i in range(4)]
        np.testing.assert_allclose(ratios, [0.125 / 50, 0.25 / 50, 0.5 / 50, 1 / 50])


def test_what_an_evaluation_leaves(runs: Path):
    folder = runs / "whole" / "evaluation" / "last"
    report = json.loads((folder / "metrics.json").read_text())
    found = np.load(folder / "predictions.npz")
    assert found["ids"].tolist() == [f"clip-{i:05d}" for i in range(NUM_CLIPS)]
    assert found["classes"].tolist() == ["class 0", "class 1", "class 2"]
    labels = torch.from_numpy(found["labels"]).float()
    assert list(report["results"]) == [
        name.removeprefix("scores_") for name in found if name.startswith("scores_")
    ]
    for name, values in report["results"].items():
        scores = torch.from_numpy(found[f"scores_{name}"])
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
        measured = summary_scores(scores, labels)
        assert {key: values[key] for key in measured} == pytest.approx(measured)
        assert values["mAP_low"] <= values["mAP_high"]
    assert report["clips"] == NUM_CLIPS
    assert report["per_class_of"] == "audio_visual_ensemble"
    scores = torch.from_numpy(found["scores_audio_visual_ensemble"])
    precision = class_scores(scores, labels).average_precision.tolist()
    assert [row["average_precision"] for row in report["per_class"]] == pytest.approx(precision)
    assert [row["positives"] for row in report["per_class"]] == [8, 8, 7]
    assert report["frozen_features"]["retrieval_chance_r1"] == 1 / NUM_CLIPS
    assert "linear_audio_visual_top1" in report["frozen_features"]
    assert len((folder / "per_class.csv").read_text().splitlines()) == 4
    pictures = {path.name.rsplit("_", 1)[0] for path in (runs / "whole" / "pictures").glob("*.png")}
    kinds = ("confusion", "per_class", "retrieval", "worst_errors")
    assert pictures == {f"{name}_{kind}" for name in ("last", "averaged") for kind in kinds}
    assert json.loads((runs / "whole" / "classes.json").read_text()) == ["class 0", "class 1", "class 2"]
