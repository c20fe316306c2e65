"""From MELD as it is published, with its oddities, to a fusion that is trained, evaluated and asked."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from support.films import config
from support.meld import write_meld
from support.odd_media import write_media
from support.processes import run_ranks

from datasets.manifests.run import main as manifests
from datasets.prepare.run import prepare
from datasets.shards.manifest import ShardIndex
from engine.predict.run import main as predict


def test_from_the_published_form_to_predictions(tmp_path: Path):
    raw = write_meld(tmp_path / "MELD.Raw")
    for path in raw.rglob("dia0_utt*.mp4"):
        if not path.name.startswith("."):
            of_test = "test" in path.parts
            write_media(path, 0.12 if of_test else 0.4, layout="5.1" if of_test else "stereo")
    manifests(["meld", str(raw), str(tmp_path / "meld.csv")])
    shards = tmp_path / "shards"
    prepare(config(tmp_path / "meld.csv", shards, min_seconds=0.1, clip_seconds=None, partial=True))
    run = tmp_path / "run"
    words = [
        "objective.kind=fusion", f"data.train={shards / 'train'}", f"data.val={shards / 'dev'}", "data.num_workers=0",
        f"output_dir={run}", "model.image_size=32", "model.audio_length=32", "model.num_mel_bins=32",
        "objective.heads=[{task: emotion, balanced: true}, {task: sentiment}]", "best=val/emotion/weighted_f1",
        "train.steps=2", "train.eval_interval=1", "train.parallel.global_batch_size=2", "evaluation.bootstrap=0",
        "train.parallel.precision=fp32", f"evaluation.shards={shards / 'test'}", "evaluation.batch_size=2",
    ]  # fmt: skip
    assert run_ranks("support.labelled_runs:tune", 1, runs=[words]) == [[True]]
    report = json.loads((run / "evaluation" / "last" / "metrics.json").read_text())
    assert [report[name] for name in ("clips", "unreadable")] == [3, []]
    assert [len(classes) for classes in report["heads"].values()] == [7, 3]
    counts = {
        name: values["clips"] for name, values in report["results"].items() if name.startswith("emotion/")
    }
    assert counts["emotion/text"] == counts["emotion/audio_visual_text"] == 3
    assert counts["emotion/audio"] == counts["emotion/visual"] == 2  # of one the video is of no use

    torch.set_num_threads(1)
    made = [
        str(run),
        str(tmp_path / "meld.csv"),
        str(tmp_path / "out.jsonl"),
        "--device",
        "cpu",
        "--num_workers",
        "0",
    ]
    predict(made)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    # Rows with text whose video is missing or broken are judged by it, as they were trained on.
    assert (
        len(rows) == sum(ShardIndex.load(shards / split).samples for split in ("train", "dev", "test")) == 7
    )
    heard = [row["text"] for row in rows if row["end"] is not None]
    assert heard == ["I can’t, “no”", "Hi", "Café ’s", "Recut"]
    assert all(row["text"] for row in rows)
    assert all(abs(sum(row["emotion"].values()) - 1) < 1e-5 for row in rows)
    assert not (tmp_path / "out.jsonl.rejects.csv").exists()
