"""Links that somebody planted under the names which commands write: what they point at stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.films import config
from support.shards import make_shards

from atomic import replacing_by_name
from datasets.prepare.run import prepare
from datasets.prepare.sources import PrepareError
from datasets.stats import main as stats
from datasets.synthetic.scene import SyntheticConfig
from datasets.synthetic.world import generate
from engine.checkpoints.integrity import write_sealed
from engine.embeddings import write_embeddings
from engine.evaluation.files import save_predictions
from engine.evaluation.predictions import Predictions
from engine.inference.parts import PartStore, _write_rejects
from engine.records.runlog import RunLog
from models.weights.tensor_files import write_safetensors


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def test_files_take_the_place_of_links(tmp_path: Path, victim: Path) -> None:
    scores = Predictions(["a"], torch.zeros(1), torch.zeros(1, 2), {}, [])
    columns = {"id": np.array(["a"]), "audio": np.ones((1, 2), np.float32)}
    writers = {
        "weights.safetensors": lambda path: write_safetensors(path, {"a": torch.zeros(1)}),
        "vectors.npz": lambda path: write_embeddings(path, [columns], [], {}),
        "out.npz.rejects.csv": lambda path: _write_rejects(path.with_name("out.npz"), [("a", "b")]),
        "state.json": lambda path: write_sealed(path, {"step": 1}),
        "predictions.npz": lambda path: save_predictions(path, scores, ["x", "y"]),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.symlink_to(victim)
        (tmp_path / f".writing_{name}").symlink_to(victim)  # names that earlier versions wrote to
        write(path)
        assert not path.is_symlink(), name
        assert path.stat().st_size, name
        assert victim.read_text() == "precious", name
    with pytest.raises(ZeroDivisionError), replacing_by_name(tmp_path / "half") as temporary:
        temporary.write_text(str(1 / 0))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial") or path.name == "half"]


def test_the_contact_sheet_takes_the_place_of_a_link(tmp_path: Path, victim: Path) -> None:
    folder = make_shards(tmp_path / "set", 2, 2)
    (folder / "contact_sheet.png").symlink_to(victim)
    stats([str(folder)])
    assert victim.read_text() == "precious"
    assert (folder / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["index.json", "rejects.csv", "shard-000000.tar.partial", ".prepare"])
def test_a_set_is_not_prepared_among_links(tmp_path: Path, victim: Path, name: str) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(victim)
    with pytest.raises(PrepareError, match=f"{name} is a symbolic link"):
        prepare(config(tmp_path / "films", tmp_path / "out"))


def test_neither_worlds_nor_parts_of_vectors_are_written_among_links(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "train").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="train is a symbolic link"):
        generate(tmp_path / "world", SyntheticConfig(train=1, val=0, test=0))
    (tmp_path / "v.npz.parts").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"v.npz.parts is a symbolic link"):
        PartStore(tmp_path / "v.npz", {}, 1, 1)


def test_a_run_s_records_go_through_no_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "run").mkdir()
    log = RunLog(tmp_path / "run", 0, 1)
    (tmp_path / "run" / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        log.metrics(1, {"loss": 1.0})
    (tmp_path / "run" / "metrics.jsonl").unlink()
    log.metrics(1, {"loss": 1.0})
    log.close()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}
    assert victim.read_text() == "precious"
