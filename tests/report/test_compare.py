"""Runs side by side, and beside their recipes' cards."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from support.chromium import Chromium

from engine.compare.run import main
from engine.recipes import cards
from engine.recipes.cards import Card, Expectation, judge, load_card
from engine.recipes.nearest import CONFIGS, nearest_recipe, recipe_files, resolved
from engine.run_folder import RunFolder


def test_every_recipe_has_a_card() -> None:
    assert {path.name for path in recipe_files()} == {
        path.name for path in (CONFIGS / "cards").glob("*.yaml")
    }
    for path in recipe_files():
        card = load_card(path)
        assert card.source
        assert card.data
        assert card.cost


def make_run(
    folder: Path, rate: float, values: dict[str, float], batch: int = 10, **settings: object
) -> Path:
    """A finished run of the tiny recipe of 20 steps, with a loss that falls by ``rate`` a step."""
    config = {"train.parallel.global_batch_size": batch, **settings}
    nested: dict = {}
    for key, value in (resolved(CONFIGS / "pretrain_cav_mae_tiny.yaml", True, "") | config).items():
        *parts, last = key.split(".")
        inner = nested
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": 20, "total_steps": 20}))
    lines = [
        {"step": step, "train/loss": 10 - rate * step, "train/samples_per_second": 100.0}
        for step in (5, 10, 15, 20)
    ]
    lines.append({"step": 20, **values})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table(said: str, title: str) -> dict[str, list[str]]:
    """The rows of a printed table by their first word."""
    part = said.split(title)[1].split("\n\n")[0]
    return {line.split()[0]: line.split()[1:] for line in part.splitlines()[1:] if line.split()}


def test_at_equal_samples_and_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = make_run(tmp_path / "small", 0.1, {"val/retrieval_a2v_r1": 0.2})
    large = make_run(tmp_path / "large", 0.2, {}, batch=20)
    main([str(small), str(large), "--page", str(tmp_path / "page.html"), "--cards"])
    said = capsys.readouterr().out
    assert table(said, "Newest values")["train/loss"] == ["8", "6"]
    assert table(said, "At equal samples: 200 samples")["train/loss"] == ["8", "8"]
    assert table(said, "At equal training time: 0.0 min")["train/loss"] == ["8", "8"]
    assert table(said, "Newest values")["val/retrieval_a2v_r1"] == ["0.2", "–"]
    assert table(said, "Settings that differ")["train.parallel.global_batch_size"] == ["10", "20"]
    assert "settings differ from configs/pretrain_cav_mae_tiny.yaml: train.parallel.global_batch_size" in said


@pytest.mark.parametrize(
    ("values", "settings", "verdict", "why"),
    [
        ({"val/retrieval_a2v_r1": 0.9, "val/retrieval_v2a_r1": 0.9}, {}, "as expected", ""),
        ({"val/retrieval_a2v_r1": 0.05, "val/retrieval_v2a_r1": 0.9}, {}, "below", "1 of 2 figures"),
        ({"val/retrieval_a2v_r1": 0.9}, {}, "as expected", "1 figures are not there"),
        ({}, {}, "not comparable", "none of the card's figures"),
        ({}, {"optimizer.lr": 0.1, "seed": 3}, "not comparable", "settings differ .*: optimizer.lr$"),
        ({}, {"init": "weights.pth"}, "not comparable", "began from given weights"),
        ({}, {"model.name": "cav_mae_small"}, "not comparable", "no recipe"),
    ],
)
def test_beside_the_card(
    tmp_path: Path, values: dict[str, float], settings: dict[str, object], verdict: str, why: str
) -> None:
    run = RunFolder.open(make_run(tmp_path / "run", 0.1, values, batch=32, **settings))
    judgement = judge(run, nearest_recipe(run))
    assert judgement.verdict == verdict
    assert re.search(why, judgement.why)


def test_points_of_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.open(make_run(tmp_path / "run", 0.1, {}, batch=32))
    points = tuple(
        Expectation("train/loss", value, 0.1, step, "lower")
        for step, value in ((10, 8.95), (15, 8.0), (12, 5.0))
    )
    card = Card("pretrain_cav_mae_tiny.yaml", "ours", "any", "none", True, expected=points)
    monkeypatch.setattr(cards, "load_card", lambda _: card)
    judgement = judge(run, nearest_recipe(run))
    assert [row[-1] for row in judgement.rows] == ["as expected", "below", "not there"]
    with pytest.raises(ValueError, match="not run here"):
        Card("x.yaml", "", "", "", False, expected=points)


def test_runs_of_different_tasks(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = tmp_path / "third"
    shutil.copytree(runs / "pretrain", third, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.rmtree(third / "tensorboard")
    page = tmp_path / "page.html"
    main([str(runs / "pretrain"), str(runs / "finetune"), str(third), str(tmp_path), "--page", str(page)])
    said = capsys.readouterr().out
    assert "is no run" in said
    assert "learn different things" in said
    assert table(said, "Runs\n")["samples"] == ["24", "12", "24"]
    assert "last/audio_visual mAP" in said
    with Chromium(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.run("document.querySelectorAll('.plot .cartesianlayer').length") >= 20
        assert (
            browser.run("Math.max(...[...document.querySelectorAll('.plot')].map(x => x.data.length))") == 3
        )
        assert browser.errors == []


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(tmp_path)], "is no run"),
        ([str(tmp_path), "--page", "x.txt"], "must end in .html"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 1
        assert message in capsys.readouterr().err
