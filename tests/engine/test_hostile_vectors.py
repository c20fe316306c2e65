"""Files of vectors that others made: what unfolds to far more than its size, or is none, is refused by name."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine.embeddings import main, read_embeddings


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("marker"),)


def array(shape: str, dtype: str = "<f4", data: bytes = bytes(64)) -> bytes:
    """An NPY file whose header says anything."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + data


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"id": saved(["a"]), "audio": array("(1099511627776, 4)")}, "claims more values than it holds"),
        ({"id": saved(["a"]), "audio": array("(-1, 4)")}, "claims more values than it holds"),
        ({"id": saved(["a"]), "audio": array("(" * 200)}, "EOF"),
        ({"id": saved(["a"]), "audio": saved(np.zeros(4))}, "audio is no column of 1 vectors"),
        ({"id": saved(["a"]), "audio": saved([["x"]])}, "audio is no column of 1 vectors"),
        ({"id": saved("a")}, "no column `id`"),
        ({"audio": saved(np.zeros((1, 4)))}, "no column `id`"),
        ({"id": b"no array"}, "magic"),
        ({"id": saved(["a"]), "audio": saved([[np.nan]])}, "audio holds numbers that are not finite"),
        ({"id": saved(["a"]), "labels": saved(np.zeros((1, 100_001), np.int8))}, "more than 100000 classes"),
    ],
)  # fmt: skip
def test_an_npz_holds_what_it_claims(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_embeddings(npz(tmp_path / "a.npz", **members))


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path, capsys) -> None:
    for name, width in (("train", 3), ("test", 4)):
        np.savez(tmp_path / f"{name}.npz", id=["a", "b"], audio=np.eye(2, width), labels=np.eye(2))
    os.mkfifo(tmp_path / "fifo.npz")
    for name, message in (
        ("test", "audio has 3 columns in train and 4 in test"),
        ("fifo", "no regular file"),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path / "train.npz"), str(tmp_path / f"{name}.npz")])
        assert message in capsys.readouterr().err


def test_an_npz_of_objects_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", id=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        read_embeddings(tmp_path / "a.npz")
    assert not (tmp_path / "marker").exists()


def test_an_npz_that_unfolds_is_refused_before_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("audio.npy", "w") as file:
        file.write(array("(100000000, 1)", data=b""))
        for _ in range(400):
            file.write(bytes(1_000_000))
    with pytest.raises(SystemExit):
        main([str(path), str(path)])
    assert "unfolds to more than 100 times its size" in capsys.readouterr().err


def test_a_parquet_file_that_unfolds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("engine.embeddings._SPARE_BYTES", 1 << 20)
    name = "x" * 100_000
    table = pa.table({"id": pa.array([name]).take(pa.array([0] * 5000))})
    pq.write_table(table, tmp_path / "long.parquet", compression="zstd")  # 0.5 GB of one name
    with pytest.raises(
        ValueError, match=r"long.parquet holds no embeddings: it unfolds to more than 100 times"
    ):
        read_embeddings(tmp_path / "long.parquet")
    labels = pa.array([[0]] * 1000, pa.list_(pa.int32()))
    table = pa.table({"id": [str(i) for i in range(1000)], "labels": labels})
    many = table.replace_schema_metadata({"earsight": json.dumps({"classes": [0] * 20_000})})
    pq.write_table(many, tmp_path / "classes.parquet", compression="zstd")
    with pytest.raises(ValueError, match=r"classes.parquet holds no embeddings: it unfolds to more than"):
        read_embeddings(tmp_path / "classes.parquet")
    (tmp_path / "none.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match=r"none.parquet holds no embeddings"):
        read_embeddings(tmp_path / "none.parquet")


@pytest.mark.parametrize("labels", [[7], [-1], None, [None]])
def test_labels_of_a_parquet_file_are_numbers_of_its_classes(tmp_path: Path, labels: list | None) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"id": ["a", "b"], "labels": pa.array([[1], labels], pa.list_(pa.int32()))})
    table = table.replace_schema_metadata({"earsight": json.dumps({"classes": ["x", "y"]})})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a.parquet holds no embeddings: labels of row 1 are no list of numbers below 2"
    ):
        read_embeddings(tmp_path / "a.parquet")
