"""Predictions on disk: a row a window, as JSON lines, CSV or Parquet.

JSON lines hold an object a row: ``id``, ``start``, ``end`` (seconds), ``text`` where the model reads any, and for each
head an object of classes and probabilities. CSV and Parquet have a column ``HEAD:CLASS`` for each probability.
Probabilities are float32, written with the digits that give them back exactly.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atomic import replacing
from engine.embeddings import Columns

SUFFIXES = (".jsonl", ".csv", ".parquet")
Heads = Mapping[str, Sequence[str]]
"""The classes of each head."""


def check_target(path: Path) -> None:
    """Raises ``ValueError`` unless predictions can be written to ``path``."""
    if path.exists():
        raise ValueError(f"{path} is there already; remove it or name another file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: there is no such folder")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{path}: Parquet needs pyarrow: pip install -e '.[embed]', or name a .jsonl or .csv file"
        )


def head_column(head: str) -> str:
    """The name of the column of a part that holds (N, classes) probabilities of a head."""
    return f"head {head}"


def write_predictions(path: Path, parts: Iterable[Columns], heads: Heads, origin: dict[str, Any]) -> None:
    """Writes the parts one after the other; the file gets its name when it is whole.

    Args:
        path: ``.jsonl``, ``.csv`` or ``.parquet``.
        parts: With ``id``, ``start``, ``end``, perhaps ``text``, and `head_column` for each head.
        heads: The classes of each head.
        origin: Model and source, kept in Parquet files.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, parts, heads, origin)
        return
    lines = _json_lines if path.suffix == ".jsonl" else _csv_lines
    with replacing(path) as file:
        file.writelines(line.encode() for line in lines(parts, heads))


def _rows(part: Columns, heads: Heads) -> Iterator[dict[str, Any]]:
    """The rows of a part, probabilities by head and class."""
    plain = {name: part[name].tolist() for name in ("id", "start", "end", "text") if name in part}
    for i in range(len(part["id"])):
        row = {name: _plain(values[i]) for name, values in plain.items()}
        for head, classes in heads.items():
            row[head] = dict(zip(classes, map(_shortest, part[head_column(head)][i]), strict=True))
        yield row


def _plain(value: Any) -> Any:
    """``value`` with None for times that are not known and texts that are not there."""
    return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _shortest(value: np.float32) -> float:
    """The number of fewest digits that is this float32."""
    return float(str(value))


def _json_lines(parts: Iterable[Columns], heads: Heads) -> Iterator[str]:
    for part in parts:
        for row in _rows(part, heads):
            yield json.dumps(row, ensure_ascii=False) + "\n"


def _csv_lines(parts: Iterable[Columns], heads: Heads) -> Iterator[str]:
    buffer = io.StringIO(newline="")
    writer, names = csv.writer(buffer, lineterminator="\n"), None
    for part in parts:
        if names is None:
            names = [name for name in ("id", "start", "end", "text") if name in part]
            writer.writerow([*names, *_class_columns(heads)])
        for row in _rows(part, heads):
            numbers = [value for head in heads for value in row[head].values()]
            writer.writerow([*(row[name] for name in names), *numbers])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _class_columns(heads: Heads) -> list[str]:
    return [f"{head}:{name}" for head, classes in heads.items() for name in classes]


def _write_parquet(path: Path, parts: Iterable[Columns], heads: Heads, origin: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(part: Columns) -> Any:
        columns = {"id": pa.array(part["id"].tolist(), pa.string())}
        columns |= {
            name: pa.array(map(_plain, part[name].tolist()), pa.float64()) for name in ("start", "end")
        }
        if "text" in part:
            columns["text"] = pa.array(map(_plain, part["text"].tolist()), pa.string())
        values = np.concatenate([part[head_column(head)] for head in heads], axis=1)
        return pa.table(columns | dict(zip(_class_columns(heads), map(pa.array, values.T), strict=True)))

    with replacing(path) as file:
        writer = None
        for part in parts:
            found = table(part)
            if writer is None:
                found = found.replace_schema_metadata({"earsight": json.dumps(origin)})
                writer = pq.ParquetWriter(file, found.schema, compression="zstd")
            writer.write_table(found.cast(writer.schema))
        assert writer is not None
        writer.close()
