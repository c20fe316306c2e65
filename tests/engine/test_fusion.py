"""Fusion as an objective and a program: losses, two ranks, exact resume without the sources, evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from support.fusion import ROWS, VOCABULARY, in_one, small_objective, spoken_batch
from support.processes import run_ranks
from support.shards import make_shards
from support.spoken import make_spoken_shards

from datasets.loading.config import DataConfig
from datasets.loading.loader import evaluation_loader
from engine.checkpoints.weights import load_weights
from engine.config import parse_config
from engine.evaluation.fusion import subset_scores, subsets
from engine.evaluation.head_scores import class_table, single_label_scores
from engine.evaluation.scores import confusion_matrix
from engine.objectives.fusion import FusionConfig, HeadConfig, head_loss, heads_of
from engine.parallel.world import World
from engine.records.runlog import read_metrics
from engine.tasks.finetune import finetune, labelled_task, open_predictor
from engine.tasks.finetune_config import LabelledConfig
from engine.tasks.fusion_task import balanced_weights
from engine.training.best_weights import BestWeights, best_file
from models.fusion import Opinion

pytest.importorskip("transformers")
sk: Any = sklearn.metrics
KINDS = [
    {"fusion": name, "zero_stage": stage} for name, stage in (("late", 1), ("intermediate", 0), ("early", 2))
]
STEPS, STOPPED = 4, 2
ALONE = World(0, 1, torch.device("cpu"))


def test_a_heads_loss_is_its_definition():
    config = FusionConfig(heads=(HeadConfig("emotion", label_smoothing=0.1, balanced=True),))
    head = replace(heads_of(config, VOCABULARY)["emotion"], weights=(0.5, 2.0, 1.0))
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    logits, share = torch.randn(4, 3), torch.tensor([1.0, 0.5, 1.0, 0.25])
    expected = 0.0
    for row, (label, weight) in {0: (0, 0.5), 1: (1, 2.0), 3: (2, 1.0)}.items():
        target = torch.full((3,), 0.1 / 3)
        target[label] += 0.9
        expected += share[row] * weight * -(target * logits[row].log_softmax(0)).sum() / 4
    torch.testing.assert_close(head_loss(head, [Opinion(logits, share)], labels), expected)
    several = heads_of(FusionConfig(heads=(HeadConfig(None, loss="bce"),)), VOCABULARY)["classes"]
    both, ones = torch.randn(4, 5), torch.ones(4)
    given = torch.eye(5)[:4]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(both, given)
    torch.testing.assert_close(head_loss(several, [Opinion(both, ones)], given), bce)


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [5, 1, 14])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights(np.bincount(labels)), expected)
    assert balanced_weights(np.array([3, 0, 3])) == (1.0, 0.0, 1.0)


def test_heads_are_slices_of_the_vocabulary():
    heads = heads_of(FusionConfig(), VOCABULARY)
    assert {name: (head.classes, head.columns) for name, head in heads.items()} == {
        "emotion": (("anger", "joy", "neutral"), (0, 1, 2)),
        "sentiment": (("negative", "positive"), (3, 4)),
    }
    assert list(heads_of(FusionConfig(), ["dog", "mood:sad"])) == ["classes"]
    with pytest.raises(
        ValueError, match="task 'irony' has 0 classes in the training set; it has emotion, sentiment"
    ):
        heads_of(FusionConfig(heads=(HeadConfig("irony"),)), VOCABULARY)


def test_modality_dropout_is_a_function_of_the_seed_and_leaves_one():
    objective = small_objective(modality_dropout=0.6)
    batch = spoken_batch(list(range(ROWS)))
    many = replace(batch, seeds=torch.arange(ROWS))
    inputs = objective.inputs(many)
    counts = []
    for start in range(0, 160, ROWS):
        seeds = torch.arange(start, start + ROWS)
        found = objective._dropped(inputs, seeds).present
        there, kept = (torch.stack([x[m] for m in objective.modalities], 1) for x in (inputs.present, found))
        assert not (kept & ~there).any()
        assert kept.any(1).all()
        counts.append(kept[[0, 3]].float())
        again = objective._dropped(inputs, seeds).present
        assert all(torch.equal(found[m], again[m]) for m in found)
    # Each by itself stays with 0.4, or as the highest of three that are all below 0.6.
    expected = 0.4 + 0.6**3 / 3
    assert torch.stack(counts).mean() == pytest.approx(expected, abs=0.15)
    with torch.no_grad():
        whole = objective.train()(many)["loss"]
        parts = [objective(small_part(many, row))["loss"] for row in range(ROWS)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def small_part(batch: Any, row: int) -> Any:
    found = spoken_batch([int(batch.rows[row])])
    return replace(found, seeds=batch.seeds[[row]])


@pytest.mark.parametrize("fusion", ["late", "intermediate", "early"])
def test_what_is_not_there_has_no_influence_and_every_weight_a_gradient(fusion: str):
    objective = small_objective({"fusion": fusion}).eval()
    batch = spoken_batch(list(range(ROWS)))
    assert batch.waveform is not None
    assert batch.num_samples is not None
    assert batch.frames is not None
    behind = torch.arange(batch.waveform.shape[1]) >= batch.num_samples[:, None]
    other = replace(
        batch,
        waveform=torch.where(behind, 12345, batch.waveform).to(torch.int16),
        frames=torch.where((torch.arange(ROWS) == 2)[:, None, None, None, None], 255, batch.frames).to(
            torch.uint8
        ),
        text=[text if text else " \n" for text in batch.text or []],
    )
    wanted = subsets(objective.modalities)
    assert list(wanted) == [
        "audio_visual_text",
        "audio_visual",
        "audio_text",
        "visual_text",
        "audio",
        "visual",
        "text",
    ]
    found, same = (subset_scores(objective, clips, wanted) for clips in (batch, other))
    for name, scores in found.items():
        assert torch.equal(torch.nan_to_num(scores, -1.0), torch.nan_to_num(same[name], -1.0)), name
    assert found["emotion/text"].isnan().any(1).tolist() == [row >= ROWS // 2 for row in range(ROWS)]
    assert found["emotion/visual"].isnan().any(1).tolist() == [row == 2 for row in range(ROWS)]
    objective.train()(batch)["loss"].backward()
    trained = {n: p for n, p in objective.model.named_parameters() if p.requires_grad}
    assert not [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    assert len(trained) > 20


def test_metrics_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (200,), generator=generator)
    scores = (torch.eye(4)[truth] + torch.rand(200, 4, generator=generator)).softmax(1)
    labels, said = torch.eye(4)[truth], scores.argmax(1)
    found = single_label_scores(scores, labels, 400)
    assert found["weighted_f1"] == pytest.approx(
        sk.f1_score(truth, said, average="weighted", zero_division=0)
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, said, average="macro", zero_division=0))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    rng = np.random.default_rng(1)
    drawn = [rng.integers(200, size=200) for _ in range(100)]
    plain = [sk.f1_score(truth[d], said[d], average="weighted", zero_division=0) for d in drawn]
    bounds = [found["weighted_f1_low"], found["weighted_f1_high"]]
    np.testing.assert_allclose(bounds, np.quantile(plain, [0.025, 0.975]), atol=0.03)
    assert (
        confusion_matrix(scores, labels).tolist()
        == sk.confusion_matrix(truth, said, labels=range(4)).tolist()
    )
    table = class_table(scores, labels, list("abcd"))
    columns = sk.precision_recall_fscore_support(truth, said, labels=range(4), zero_division=0)
    for i, row in enumerate(table):
        assert [row["precision"], row["recall"], row["f1"], row["clips"]] == [column[i] for column in columns]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole`` in one go; ``part`` and, on two ranks, ``moved`` go on without the folders of their towers."""
    from support.folders import save_text, save_wave

    folder = tmp_path_factory.mktemp("fusion")
    shards, sources = make_spoken_shards(folder / "shards", 10), folder / "sources"
    save_wave(sources / "wave")
    save_text(sources / "bert")

    def words(run: str, steps: int, *more: str) -> list[str]:
        return [
            "objective.kind=fusion", f"output_dir={folder / run}", f"data.train={shards}", f"data.val={shards}",
            "data.num_workers=0", "model.image_size=32", "model.audio_length=32", "model.num_mel_bins=32",
            f"model.audio.source={sources / 'wave'}", "model.audio.frozen=true", "model.audio.pooling=attention",
            f"model.text.source={sources / 'bert'}", "model.text.pooling=cls", "model.visual.width=16",
            "model.visual.pooling=gem", "objective.text.from_epoch=0.8", "objective.text.lr_ratio=0.1",
            "objective.modality_dropout=0.2",
            "objective.heads=[{task: emotion, balanced: true}, {task: sentiment, weight: 0.5}]", f"train.steps={steps}",
            "train.log_interval=1", "train.eval_interval=2", "schedule.kind=constant",
            "train.parallel.global_batch_size=4", "train.parallel.precision=fp32", "best=val/emotion/macro_f1",
            "optimizer.lr=0.01", "evaluation.bootstrap=0", "evaluation.batch_size=4", *more,
        ]  # fmt: skip

    stage = "train.parallel.zero_stage=1"
    first = [words("whole", STEPS), words("part", STOPPED), words("moved", STOPPED, stage)]
    one = run_ranks(
        f"support.fusion:{in_one.__name__}",
        1,
        first=first,
        timeout=280,
        sources=str(sources),
        then=[words("part", STEPS)],
    )
    assert one == [[True] * 4]
    two = run_ranks("support.fusion:in_two", 2, kinds=KINDS, runs=[words("moved", STEPS, stage)])
    assert [rank["tuned"] for rank in two] == [[True]] * 2
    torch.save([rank["found"] for rank in two], folder / "gradients.pt")
    return folder


def test_two_ranks_of_which_one_has_no_text_equal_one(runs: Path):
    ranks = torch.load(runs / "gradients.pt", weights_only=True)
    for kind, first, second in zip(KINDS, *ranks, strict=True):
        objective = small_objective({"fusion": kind["fusion"]}, modality_dropout=0.3)
        loss = objective(spoken_batch(list(range(ROWS))))["loss"]
        loss.backward()
        torch.testing.assert_close((first["loss"] + second["loss"]) / 2, loss.detach(), rtol=1e-5, atol=1e-6)
        grads = [p.grad for p in objective.model.parameters() if p.grad is not None]
        whole = torch.stack([grad.norm() for grad in grads]).norm()
        for name, parameter in objective.model.named_parameters():
            assert torch.equal(first["grads"][name], second["grads"][name])
            assert parameter.grad is not None
            # Beside the whole gradient: that of a first layer's bias is what rounding leaves of far larger sums.
            assert (first["grads"][name] - parameter.grad).norm() <= 1e-4 * whole, (kind, name)


def losses(run: Path) -> dict[float, float]:
    return {record["step"]: record["train/loss"] for record in read_metrics(run) if "train/loss" in record}


def test_resume_is_exact_without_the_sources_and_in_another_world(runs: Path):
    assert not (runs / "sources").exists()
    planned = parse_config(LabelledConfig, "test", ["--config", str(runs / "part" / "config.yaml")])[0]
    assert labelled_task(planned).sketch().modalities == ("audio", "visual", "text")
    whole, part, moved = (losses(runs / name) for name in ("whole", "part", "moved"))
    assert list(whole) == list(range(1, STEPS + 1))
    assert part == whole
    assert moved == pytest.approx(whole, rel=1e-4)
    weights, again = (load_weights(runs / name) for name in ("whole", "part"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    best = [json.loads((runs / name / "best" / "values.json").read_text()) for name in ("whole", "part")]
    assert best[0] == best[1]
    assert best[0]["of"]["metric"] == "val/emotion/macro_f1"
    values = {
        r["step"]: r["val/emotion/macro_f1"]
        for r in read_metrics(runs / "whole")
        if "val/emotion/macro_f1" in r
    }
    assert best[0]["values"][-1] == [
        max(values, key=lambda step: (values[step], -step)),
        max(values.values()),
    ]
    rates = {
        r["step"]: r["train/lr_text_tower_decay"] for r in read_metrics(runs / "whole") if "train/loss" in r
    }
    assert list(rates.values()) == pytest.approx([0.0, 0.0, 0.001, 0.001])


def test_another_metric_or_set_begins_the_search_for_the_best_anew(tmp_path: Path):
    measured = {"val/a": 0.1, "val/b": 0.9}

    def search(metric: str, of: str, step: int) -> None:
        found = BestWeights(metric, of, tmp_path, lambda *_: measured, is_main=True)
        found(SimpleNamespace(model=torch.nn.Linear(1, 1)), step, None)  # type: ignore[arg-type]

    for place, (metric, of) in enumerate([("val/b", "x"), ("val/a", "x"), ("val/a", "y")], start=1):
        search(metric, of, place)
        search(metric, of, 9)  # no better
        assert best_file(tmp_path) == tmp_path / "best" / f"step_{place:08d}.safetensors"
        assert len(list((tmp_path / "best").glob("*.safetensors"))) == 1


def test_an_evaluation_says_what_its_predictions_are_worth_and_the_predictor_the_same(runs: Path):
    torch.set_num_threads(1)
    for name in ("last", "best"):
        folder = runs / "part" / "evaluation" / name
        report, stored = (
            json.loads((folder / "metrics.json").read_text()),
            np.load(folder / "predictions.npz"),
        )
        assert len(report["results"]) == 14
        labels = stored["labels"][:, 3:]
        scores = stored["scores_sentiment/audio_text"]
        rows = (labels.sum(1) > 0) & np.isfinite(scores).all(1)
        assert report["results"]["sentiment/audio_text"]["clips"] == rows.sum() < len(rows)
        truth, said = labels[rows].argmax(1), scores[rows].argmax(1)
        f1 = sk.f1_score(truth, said, average="weighted", zero_division=0)
        assert report["results"]["sentiment/audio_text"]["weighted_f1"] == pytest.approx(f1)
        assert np.sum(report["confusion"]["emotion"]) == 10
        assert (folder / "per_class.csv").read_text().splitlines()[
            0
        ] == "head,class,clips,precision,recall,f1"
    predictor = open_predictor(runs / "part")
    assert predictor.heads == {"emotion": ["anger", "joy", "neutral"], "sentiment": ["negative", "positive"]}
    data = DataConfig(str(runs / "shards"), num_workers=0)
    loader = evaluation_loader(data, runs / "shards", predictor.needs, batch_size=4)
    found = [predictor.predict(batch) for batch in loader]
    stored = np.load(runs / "part" / "evaluation" / "last" / "predictions.npz")
    for head in predictor.heads:
        everything = torch.cat([part[head] for part in found])
        assert torch.equal(everything, torch.from_numpy(stored[f"scores_{head}/audio_visual_text"]))


def test_what_cannot_be_meant_is_refused(runs: Path, tmp_path: Path, capsys):
    def fails(message: str, *words: str) -> None:
        given = [
            "objective.kind=fusion",
            f"data.train={runs / 'shards'}",
            f"output_dir={runs / 'none'}",
            *words,
        ]
        with pytest.raises(ValueError, match=message):
            finetune(*parse_config(LabelledConfig, "test", given), ALONE)

    fails("emotion, sentiment", "objective.heads=[{task: age}]")
    fails("needs one class a clip, and 8 clips", "objective.heads=[{task: null}]")
    silent = make_shards(tmp_path / "untold", 4, 5, seconds=0.3, frames=1)
    fails("names text, and no clip of .*untold has any: leave it out", f"data.train={silent}")
    for words, message in (
        (["sampling.mixup=0.5"], "no mixing two texts"),
        (["train.parallel.compile=true"], "each would be compiled anew"),
        (["best=val/x"], "best needs evaluations during training"),
        (["objective.text.from_epoch=1"], "would stay random"),
        (["objective.modalities=audio"], "modalities"),
        (["model.name=cav_mae_tiny"], "have the model fusion"),
        (
            ["model.text.source=x", "model.text.frozen=true", "objective.text.lr_ratio=0.1"],
            "objective.text has no effect",
        ),
        (["model.audio.clusters=4"], "clusters have no effect"),
        (["objective.heads=[{task: start}]"], "also a column of the predictions"),
    ):
        with pytest.raises(SystemExit):
            parse_config(LabelledConfig, "test", ["objective.kind=fusion", "data.train=x", *words])
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "name", ["finetune_fusion_tiny", "meld_r3d_bert_wav2vec2", "meld_earsight", "features_wav2vec2_videomae"]
)
def test_recipes_are_configs(name: str):
    config, _ = parse_config(LabelledConfig, "test", ["--config", f"configs/{name}.yaml"])
    assert config.objective.kind == "fusion"
    assert config.best is not None
