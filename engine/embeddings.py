"""Vectors of clips on disk, as Parquet or NPZ, and what they are worth.

Parquet: a row a clip with ``id``, ``labels`` (class numbers) and a list of float32 for each vector. NPZ: the
same as arrays, ``labels`` (N, classes) 0 or 1. ``python -m engine.embeddings TRAIN TEST`` measures linear and
nearest-neighbour probes, and retrieval where both modalities are there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from atomic import check_writable, replacing
from datasets.untrusted import whole_number
from engine.evaluation.features import Features
from engine.evaluation.probes import ProbeConfig, probe_features
from engine.evaluation.retrieval import cross_modal_retrieval
from home_paths import command_line
from terminal import show_control_characters

Columns = dict[str, NDArray[Any]]
"""Columns of some clips: ``id`` (N,) text, (N, D) float32 by name of the vector, ``labels`` (N, classes)."""

_VECTORS = ("audio", "visual", "joint")
#: A file may unfold to so many times its size, and so many bytes besides; vectors hardly pack at all.
_UNFOLDED, _SPARE_BYTES = 100, 1 << 28
_BATCH_ROWS = 1024
_MOST_CLASSES = 100_000


def check_target(path: Path) -> None:
    """Raises ``ValueError`` unless vectors can be written to ``path``."""
    if path.exists():
        raise ValueError(f"{path} is there already; remove it or name another file")
    if path.suffix not in (".parquet", ".npz"):
        raise ValueError(f"{path} must end in .parquet or .npz")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path}: Parquet needs pyarrow: pip install -e '.[embed]', or name an .npz file")
    check_writable(path.parent)


def write_embeddings(
    path: Path, parts: Iterable[Columns], classes: Sequence[str], origin: dict[str, Any]
) -> None:
    """Writes the parts one after the other; the file gets its name when it is whole.

    Parquet holds one part in memory at a time, NPZ all of them.

    Args:
        path: ``.parquet`` or ``.npz``.
        parts: With the same columns each.
        classes: Names of the labels.
        origin: Model and source, plain values, kept in the file.
    """
    with replacing(path) as file:
        if path.suffix == ".parquet":
            _write_parquet(file, parts, {"classes": list(classes), **origin})
            return
        chunks = list(parts)
        columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        extra = {"classes": np.array(classes, dtype=np.str_), "origin": np.array(json.dumps(origin))}
        np.savez(file, **columns, **extra)  # type: ignore[arg-type]


def _write_parquet(file: BinaryIO, parts: Iterable[Columns], metadata: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for part in parts:
        table = pa.table({name: _arrow(name, values) for name, values in part.items()})
        if writer is None:
            schema = table.schema.with_metadata({"earsight": json.dumps(metadata)})
            writer = pq.ParquetWriter(file, schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))
    assert writer is not None
    writer.close()


def _arrow(name: str, values: NDArray[Any]) -> Any:
    import pyarrow as pa

    if name == "id":
        return pa.array(values.tolist(), pa.string())
    if name == "labels":
        return pa.array([np.flatnonzero(row).tolist() for row in values], pa.list_(pa.int32()))
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def read_embeddings(path: Path) -> Features:
    """Reads what `write_embeddings` wrote.

    Raises:
        ValueError: It is no such file.
    """
    readers = {".parquet": _read_parquet, ".npz": load_npz}
    if path.suffix not in readers:
        raise ValueError(f"{path} must be a .parquet or .npz file of embeddings")
    if not path.is_file():  # opening a FIFO would wait for its writer
        raise ValueError(f"{path} is not there, or no regular file")
    try:
        columns = readers[path.suffix](path)
        _check_columns(columns)
    except Exception as error:  # readers of others' files end in errors of all kinds
        raise ValueError(f"{path} holds no embeddings: {error or type(error).__name__}") from error
    labels = torch.from_numpy(columns["labels"]).float() if "labels" in columns else None
    streams = {name: torch.from_numpy(columns[name]) for name in _VECTORS if name in columns}
    return Features(columns["id"].tolist(), torch.arange(len(columns["id"])), labels, streams)


def _check_columns(columns: Columns) -> None:
    if "id" not in columns or columns["id"].ndim != 1:
        raise ValueError("it has no column `id`")
    for name in columns.keys() & {*_VECTORS, "labels"}:
        values = columns[name]
        if values.ndim != 2 or len(values) != len(columns["id"]) or values.dtype.kind not in "fiub":
            raise ValueError(f"{name} is no column of {len(columns['id'])} vectors of numbers")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    if "labels" in columns and columns["labels"].shape[1] > _MOST_CLASSES:
        raise ValueError(f"it has labels of more than {_MOST_CLASSES} classes")


def load_npz(path: Path) -> Columns:
    """The arrays of an NPZ file; nothing is unpickled.

    Raises:
        Exception: Of any kind, where it is damaged, holds anything but plain arrays, or unfolds to far more than its
            size.
    """
    with zipfile.ZipFile(path) as archive:
        _check_unfolded(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            _check_header(archive, member)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises a ``ValueError`` for an array that claims more values than follow: numpy makes room for all of them."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename[:80]!r} is of version {version}, and no plain array")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename[:80]!r} claims more values than it holds")


def _check_unfolded(path: Path, size: int) -> None:
    if size > _UNFOLDED * path.stat().st_size + _SPARE_BYTES:
        raise ValueError(f"it unfolds to more than {_UNFOLDED} times its size, as no vectors do")


def _read_parquet(path: Path) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches, size = [], 0
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for batch in file.iter_batches(_BATCH_ROWS):
            size += batch.nbytes
            _check_unfolded(path, size)
            batches.append(batch)
    table = pa.Table.from_batches(batches, schema)
    metadata = json.loads((schema.metadata or {}).get(b"earsight", b"{}"))
    columns: Columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in _VECTORS:
            columns[name] = column.flatten().to_numpy().reshape(len(column), -1).copy()
        elif name == "id":
            columns[name] = np.array(column.to_pylist(), dtype=np.str_)
        elif name == "labels":
            classes = len(metadata["classes"])
            _check_unfolded(path, 4 * len(column) * classes)
            columns[name] = np.zeros((len(column), classes), np.float32)
            for number, labels in enumerate(column.to_pylist()):
                if not isinstance(labels, list) or not all(whole_number(i, 0, classes - 1) for i in labels):
                    raise ValueError(f"labels of row {number} are no list of numbers below {classes}")
                columns[name][number, labels] = 1
    return columns


def measure(train: Features, test: Features) -> Iterator[tuple[str, float]]:
    """Retrieval within the test set where it has sound and pictures, and probes from train to test.

    Raises:
        ValueError: The two have vectors or classes of different numbers.
    """
    for name in train.streams.keys() & test.streams.keys():
        _check_widths(name, train.streams[name], test.streams[name])
    if train.labels is not None and test.labels is not None:
        _check_widths("labels", train.labels, test.labels)
    if "audio" in test.streams and "visual" in test.streams:
        yield from cross_modal_retrieval(test.streams["audio"], test.streams["visual"]).items()
    if train.labels is not None and test.labels is not None:
        yield from probe_features(train, test, ProbeConfig()).items()


def _check_widths(name: str, train: torch.Tensor, test: torch.Tensor) -> None:
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"{name} has {train.shape[1]} columns in train and {test.shape[1]} in test")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what the vectors of two files are worth."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m engine.embeddings", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("train", type=Path, help="embeddings on which probes are fitted")
    parser.add_argument("test", type=Path, help="embeddings on which they are measured")
    options = parser.parse_args(command_line(arguments))
    try:
        for name, value in measure(read_embeddings(options.train), read_embeddings(options.test)):
            print(f"{name:32s} {value:.4f}")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
