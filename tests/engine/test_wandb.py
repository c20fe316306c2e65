"""Weights & Biases beside TensorBoard, offline: read back from what its own package writes."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.records.wandb_log as wandb_log
from atomic import refuse_links
from engine.config import PretrainConfig, parse_config
from engine.records.runlog import RunLog, read_metrics
from engine.records.wandb_log import LogConfig

pytest.importorskip("wandb", reason="the extra wandb is not installed")


def attempt(run: Path, start: int, losses: dict[int, float]) -> None:
    """What a process of the run logs, its steps and a picture after the last."""
    log = RunLog(run, start, 8, LogConfig("offline", "tests"), "seed: 7\nmodel: {name: small}\n")
    for step, loss in losses.items():
        log.metrics(step, {"train/loss": loss})
    log.image("grey", torch.full((3, 4, 6), 100, dtype=torch.uint8), max(losses))
    log.close()


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file of W&B's: LevelDB's log, blocks of 32 kB, behind a header of 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def read(path: Path) -> dict[str, Any]:
    """Run id, config and history of a file of W&B's."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at run time

    found: dict[str, Any] = {"history": []}
    for content in records(path.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("run"):
            found["id"], found["project"] = record.run.run_id, record.run.project
            found["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.HasField("history"):
            items = record.history.item
            found["history"].append(
                {(x.key or "/".join(x.nested_key)): json.loads(x.value_json) for x in items}
            )
    return found


def written(path: Path) -> dict[str, Any]:
    """`read`, once the package's own process has written the picture, which is the last."""
    deadline = time.monotonic() + 60
    while True:
        found = read(path)
        if any("grey/width" in row for row in found["history"]):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_run_and_its_resumption_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run = tmp_path / "run"
    attempt(run, 0, {2: 0.5, 4: 0.25, 6: 9.0})
    attempt(run, 4, {6: 0.125, 8: 0.0625})
    first, second = (written(path) for path in sorted(run.glob("wandb/offline-run-*/*.wandb")))
    assert first["id"] == second["id"] == (run / "wandb_id").read_text().strip()
    assert first["project"] == "tests"
    assert {"seed": 7, "model": {"name": "small"}}.items() <= first["config"].items()
    points = [
        [(x["step"], x["train/loss"]) for x in one["history"] if "train/loss" in x] for one in (first, second)
    ]
    assert points == [[(2, 0.5), (4, 0.25), (6, 9.0)], [(6, 0.125), (8, 0.0625)]]
    assert [x["grey/width"] for x in first["history"] if "grey/width" in x] == [6]
    rows = [x["_step"] for one in (first, second) for x in one["history"]]
    assert rows == sorted(set(rows))
    assert [(x["step"], x["train/loss"]) for x in read_metrics(run)] == [
        (2, 0.5),
        (4, 0.25),
        (6, 0.125),
        (8, 0.0625),
    ]
    assert len(list(run.rglob("grey*.png"))) == 4
    refuse_links(run, skip=("wandb",))  # the package links to its own log


def test_off_unless_asked_for_and_absent_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.train={tmp_path}", f"output_dir={tmp_path}"]
    assert parse_config(PretrainConfig, "test", words)[0].log == LogConfig()
    assert parse_config(PretrainConfig, "test", [*words, "log.wandb=offline"])[0].log.wandb == "offline"
    monkeypatch.setattr(wandb_log, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as end:
        parse_config(PretrainConfig, "test", [*words, "log.wandb=offline"])
    assert end.value.code == 2
    assert "log.wandb needs the package wandb" in capsys.readouterr().err
