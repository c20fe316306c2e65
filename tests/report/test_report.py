"""The page of a run: read by a browser, of odd folders, of files from others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chromium import Chromium
from support.videos import write_video

from engine.recipes.nearest import nearest_recipe
from engine.report.charts import MOST_POINTS, Course, curves, thin
from engine.report.evaluation import evaluation_view
from engine.report.media import Media
from engine.report.run import main, make_report
from engine.run_folder import RunFolder, training_hours


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def pretrained(runs: Path, tmp_path: Path) -> Path:
    """A copy of the pretraining run with a film, and with a step that was skipped."""
    run = tmp_path / "pretrain"
    shutil.copytree(runs / "pretrain", run)
    write_video(run / "films" / "heat.mp4")
    (run / "skipped_steps.json").write_text("[2]")
    return run


def test_in_a_browser(browser: Chromium, pretrained: Path, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    missing = make_report([pretrained, runs / "finetune"], page, clips=9)
    assert missing == []
    for dark, width in ((False, 1200), (True, 400)):
        browser.open(page, dark, width)
        charts = browser.run("document.querySelectorAll('.plot').length")
        assert charts >= 16
        assert (
            browser.run(
                "document.querySelectorAll('.plot .main-svg .plot-container, .plot .cartesianlayer').length"
            )
            >= charts
        )
        assert browser.run("document.documentElement.scrollWidth") <= width
        back = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back))) < 200) == dark
    assert browser.run("document.querySelectorAll('img').length") == browser.run(
        "Promise.all([...document.images].map(async x => { await x.decode(); return x.naturalWidth > 0 }))"
        ".then(all => all.filter(Boolean).length)"
    )
    browser.run(
        "Promise.all([document.querySelector('audio'), document.querySelector('video')].map(x => x.play()))"
    )
    for kind in ("audio", "video"):
        browser.wait(f"(x => x.currentTime > 0 && x.error === null)(document.querySelector('{kind}'))")
    browser.run(
        "(s => { s.value = 0; s.dispatchEvent(new Event('input')) })(document.querySelector('.through input'))"
    )
    assert browser.run("document.querySelector('.through output').textContent") == "step 0"
    browser.run("""(() => { const form = document.querySelector('.controls');
        form.smoothing.value = 0.5; form.axis.value = 'samples'; form.logx.checked = true;
        form.dispatchEvent(new Event('input')) })()""")
    browser.wait("document.querySelector('.plot').layout.xaxis.type === 'log'")
    assert browser.run("document.querySelector('.plot').data[1].x") == [6, 12, 18, 24]
    assert browser.run("document.querySelector('.plot').layout.shapes.map(x => x.x0)") == [12, 18]
    named = browser.run("document.querySelector('.plot').layout.annotations.map(x => x.text)")
    assert named == ["resumed", "skipped"]
    assert browser.errors == []


def test_it_says_what_the_run_is(pretrained: Path, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    main([str(pretrained), str(runs / "finetune"), str(page)])
    text = page.read_text()
    assert len(text) < 10e6
    for words in (
        "18 clips in 3 shards", "9 clips in 1 shard,",
        "configs/pretrain_cav_mae_tiny.yaml", "begun and resumed 2 times", "1 × cpu", "FLOPs",
        "24 samples", "step 4 of 4", "numbers were not finite: 3", "95 % interval", "Confusion", "of 3 classes",
    ):  # fmt: skip
        assert words in text, words
    assert "http://" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_parts_that_are_missing_are_said_and_the_rest_is_shown(runs: Path, tmp_path: Path, capsys) -> None:
    run, page = tmp_path / "finetune", tmp_path / "page.html"
    shutil.copytree(runs / "finetune", run)
    config = (run / "config.yaml").read_text().replace(str(runs / "few"), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(config)
    for name in ("metrics.json", "predictions.npz"):
        path = run / "evaluation" / "last" / name
        path.write_bytes(
            path.read_bytes().replace(str(runs / "few").encode(), str(tmp_path / "gone").encode())
        )
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_bytes(
        (run / "metrics.jsonl").read_bytes()[:-40] + b'\xff{"step": 1e999}\n{"step": []}\n'
    )
    (tmp_path / "empty").mkdir()
    main([str(tmp_path / "empty"), str(tmp_path / "none"), str(run), str(page)])
    said = capsys.readouterr().out
    for words in (
        "empty is no run",
        "none is no folder",
        "retrieval is not shown",
        "the worst errors are not shown",
    ):
        assert words in said
    text = page.read_text()
    assert "Average precision by class" in text
    assert "not readable here" in text
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "config.yaml", begun)
    assert "no curves" in " ".join(make_report([begun], page))
    for words, message in (
        ([str(tmp_path / "empty"), str(page)], "is no run"),
        ([str(run), str(tmp_path / "page.txt")], "must end in .html"),
        ([str(run), str(page), "--megabytes", "1"], "give --megabytes more"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 1
        assert message in capsys.readouterr().err


EVIL = "\u202e</script><img src=x onerror=alert(1)>\ud800"


def test_text_of_others_is_shown_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(runs / "finetune", run)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("seed: 0", f"seed: {json.dumps(EVIL)}")
    )
    (run / "status.json").write_text(json.dumps({"state": EVIL[:30], "message": EVIL[:30]}))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"step": 3, f"val/{EVIL[:30]}": 1.0, "val/large": 10**400, "val/text": "x"}) + "\n"
        )
    (run / "attempts.jsonl").write_text(
        json.dumps({"step": 0, "device": EVIL[:30], "world_size": [1]}) + "\n"
    )
    (run / "pictures" / "evil_00000001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    (run / "films").mkdir()
    (run / "films" / "x.mp4").write_bytes(b"<html>")
    missing = " ".join(make_report([run], page, clips=6))
    assert "evil_00000001.png is not shown" in missing
    assert "x.mp4 is not shown" in missing
    text = page.read_text()
    assert "<img src=x" not in text
    assert "\u202e" not in text  # turns the direction of writing around
    assert text.count("</script>") == 3
    assert "script-src &#39;sha256-" in text
    (run / "pictures" / "link_00000002.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="symbolic link"):
        make_report([run], page)


def test_of_a_fusion_each_head_is_shown(tmp_path: Path) -> None:
    values = {
        "clips": 4,
        "weighted_f1": 0.5,
        "weighted_f1_low": 0.4,
        "weighted_f1_high": 0.6,
        "accuracy": 0.75,
    }
    report = {
        "shards": "held", "clips": 4, "heads": {"mood": ["glad", "sad"], "tone": ["low", "high"]},
        "results": {"mood/audio_text": values, "tone/text": {"clips": 0}}, "per_class_of": "audio_text",
        "confusion": {"mood": [[2, 0], [1, 1]], "tone": [[1]]},
    }  # fmt: skip
    shown = evaluation_view(RunFolder(tmp_path, evaluations={"last": report}), "last", Media(1 << 20))
    assert shown.columns == ["weighted_f1", "accuracy"]
    assert shown.rows[0] == ("mood/audio_text", ["0.5 (0.4 – 0.6)", "0.75"])
    assert shown.facts == "4 clips, from held; 2 heads"
    assert len(shown.charts) == 1
    assert shown.missing == ["the confusion of tone is not shown: it is no matrix of 2 classes"]


def test_a_page_stays_within_its_size(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    missing = make_report([runs / "pretrain"], page, megabytes=2.3)
    assert page.stat().st_size < 2.3e6
    assert "did not fit" in " ".join(missing)


def test_hours_are_those_of_the_steps(tmp_path: Path) -> None:
    lines = [
        {"step": step, "train/loss": 1.0, "train/samples_per_second": rate}
        for step, rate in ((10, 5.0), (30, 20.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text("train: {parallel: {global_batch_size: 9}}\n")
    run = RunFolder.open(tmp_path)
    assert training_hours(run) == pytest.approx({0: 0, 10: 18 / 3600, 30: 27 / 3600})
    assert Course.of(run).axes([20])["hours"] == pytest.approx([22.5 / 3600])
    assert [chart["title"] for chart in curves(run)] == ["Loss", "Samples per second"]
    assert nearest_recipe(run) is None
    many = thin([(float(i), 0.0) for i in range(10 * MOST_POINTS)])
    assert (len(many), many[0][0], many[-1][0]) == (MOST_POINTS, 0.0, 10 * MOST_POINTS - 1)
