"""Going through the clips of a source in parts, which are kept beside the target until all are there.

Processes share whole parts, and a batch never holds clips of two parts: a clip is computed beside the same neighbours
whatever the number of processes and however often the work was interrupted, so that what is written at the end is the
same to the last bit (on one kind of device, with the same number of threads a process).
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from atomic import refuse_links, replacing, write_atomically
from datasets.batch import AVBatch, Ticket, collate
from datasets.loading.config import DataConfig
from datasets.loading.workers import make_loader
from engine.embeddings import Columns, load_npz
from engine.inference.sources import ClipSource
from engine.parallel.world import World
from engine.records.runlog import logger

_REJECTS = ("reject_id", "reject_reason")


@dataclass(frozen=True)
class Work:
    """How clips are gone through.

    Attributes:
        batch_size: Clips to a batch.
        part_size: Clips between two savings, and what processes share.
        num_workers: Processes that read for each process.
        bf16: Whether to compute in bfloat16.
    """

    batch_size: int = 64
    part_size: int = 512
    num_workers: int = 0
    bf16: bool = False


class PartStore:
    """The parts of one job, on disk: part k holds the clips from ``k * part_size`` on.

    Args:
        target: The file that will hold everything.
        identity: Model, source and settings; parts of a job with another identity are refused.
        count: Number of clips.
        part_size: Clips to a part.

    Raises:
        ValueError: There are parts of another job.
    """

    def __init__(self, target: Path, identity: dict[str, Any], count: int, part_size: int) -> None:
        self.folder = target.with_name(f"{target.name}.parts")
        self.starts = range(0, count, part_size)
        self.count, self.part_size = count, part_size
        text = json.dumps(identity | {"part_size": part_size}, indent=1, sort_keys=True)
        refuse_links(self.folder, itself=True)
        settings = self.folder / "job.json"
        if not settings.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(settings, text)
        elif settings.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{self.folder} holds parts of another model, source or settings; remove it to start again"
            )

    def path(self, part: int) -> Path:
        """Where a part is kept."""
        return self.folder / f"{part:06d}.npz"

    def left(self, world: World) -> list[int]:
        """The parts that this process has still to do."""
        own = range(world.rank, len(self.starts), world.size)
        return [part for part in own if not _is_whole(self.path(part))]

    def rows(self, part: int) -> range:
        """The clips of a part."""
        return range(self.starts[part], min(self.starts[part] + self.part_size, self.count))

    def keep(self, part: int, columns: Columns) -> None:
        """Writes a part; it is found only when it is whole."""
        with replacing(self.path(part)) as file:
            np.savez(file, **columns)  # type: ignore[arg-type]

    def parts(self) -> Iterator[Columns]:
        """All parts in order.

        Raises:
            ValueError: One is not there.
        """
        for part in range(len(self.starts)):
            path = self.path(part)
            if not path.is_file():
                raise ValueError(f"{path} is missing: do all processes write to the same folder?")
            yield load_npz(path)

    def filled(self) -> Iterator[Columns]:
        """The parts of which a clip could be read, without the rejects."""
        for part in self.parts():
            if len(part["id"]):
                yield {name: values for name, values in part.items() if name not in _REJECTS}

    def rejects(self) -> list[tuple[str, str]]:
        """Id and reason of each clip that could not be read."""
        return [
            row
            for part in self.parts()
            for row in zip(*(part[name].tolist() for name in _REJECTS), strict=True)
        ]


def _is_whole(part: Path) -> bool:
    """Whether a part is there and undamaged; one that lost bytes when a machine went down is done again."""
    try:
        with zipfile.ZipFile(part) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def run_parts(
    compute: Callable[[AVBatch], Columns],
    write: Callable[[Iterable[Columns]], None],
    source: ClipSource,
    target: Path,
    origin: dict[str, Any],
    work: Work,
    world: World,
    begin: Callable[[AVBatch], AVBatch] = lambda batch: batch,
) -> tuple[int, int]:
    """Goes through all clips of a source, or the rest of them, and writes what comes out; every rank calls it.

    Args:
        compute: Gives the columns of a batch of at least one clip on the world's device; a row a clip, beside ``id``.
        write: Writes the target of all parts of which a clip could be read.
        source: The clips.
        target: The file that ``write`` writes. What could not be read goes to ``TARGET.rejects.csv``.
        origin: What makes it the same job again, and its result.
        work: Batches, parts, readers, precision.
        world: The processes.
        begin: What comes before ``compute``; it may move clips to the batch's failures.

    Returns:
        Clips done, and clips that could not be read.

    Raises:
        ValueError: There are parts of another job, or no clip could be read.
        LoaderStalledError: The processes that read make no progress.
    """
    store = PartStore(target, origin, source.count, work.part_size)
    for part, columns in _compute_parts(begin, compute, source, store, work, world):
        store.keep(part, columns)
    world.barrier()
    if world.is_main:
        rejects = store.rejects()
        if len(rejects) == source.count:
            raise ValueError(f"none of the {source.count} clips could be read; the first: {rejects[:1]}")
        _write_rejects(target, rejects)
        write(store.filled())
        shutil.rmtree(store.folder)
    else:
        rejects = []
    num_rejects = world.from_main(lambda: len(rejects))
    return source.count - num_rejects, num_rejects


@torch.no_grad()
def _compute_parts(
    begin: Callable[[AVBatch], AVBatch],
    compute: Callable[[AVBatch], Columns],
    source: ClipSource,
    store: PartStore,
    work: Work,
    world: World,
) -> Iterator[tuple[int, Columns]]:
    """This process's parts that are left, each as soon as it is whole."""
    left = store.left(world)
    own = sum(len(store.rows(part)) for part in range(world.rank, len(store.starts), world.size))
    ends: list[int] = []  # the number of batches after which each part is whole
    batches: list[list[Ticket]] = []
    for rows in map(store.rows, left):
        tickets = [Ticket(row, 0) for row in rows]
        batches += [tickets[i : i + work.batch_size] for i in range(0, len(rows), work.batch_size)]
        ends.append(len(batches))
    done = own - sum(len(batch) for batch in batches)
    title = "" if world.size == 1 else f"process 1 of {world.size}"
    shown = None if world.is_main else True  # None: where standard error is a terminal
    found: list[Columns] = []
    with tqdm(total=own, initial=done, desc=title, unit="clip", disable=shown) as bar:
        for number, batch in enumerate(_loader(source, batches, work.num_workers), start=1):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=work.bf16):
                found.append(_columns(begin, compute, batch.to(world.device)))
            bar.update(len(batch) + len(batch.failures))
            if number == ends[0]:
                ends.pop(0)
                yield left.pop(0), _joined(found)
                found = []


def _loader(source: ClipSource, batches: list[list[Ticket]], num_workers: int) -> DataLoader[AVBatch]:
    join = partial(collate, num_samples=source.num_samples, num_classes=len(source.classes))
    reading = DataConfig(train="what is read", num_workers=num_workers, prefetch_factor=2)
    return make_loader(reading, source.clips, cast(Any, batches), join)


def _columns(
    begin: Callable[[AVBatch], AVBatch], compute: Callable[[AVBatch], Columns], batch: AVBatch
) -> Columns:
    batch = begin(batch) if len(batch) else batch
    for failure in batch.failures:
        logger.warning("left out: %s: %s", failure.id, failure.reason)
    columns: Columns = {
        "reject_id": np.array([failure.id for failure in batch.failures], dtype=np.str_),
        "reject_reason": np.array([failure.reason for failure in batch.failures], dtype=np.str_),
        "id": np.array(batch.ids, dtype=np.str_),
    }
    return columns | compute(batch) if len(batch) else columns


def _joined(found: list[Columns]) -> Columns:
    names = {name: None for columns in found for name in columns}  # in order; a batch of failures has fewer
    return {name: np.concatenate([columns[name] for columns in found if name in columns]) for name in names}


def _write_rejects(target: Path, rejects: list[tuple[str, str]]) -> None:
    path = target.with_name(f"{target.name}.rejects.csv")
    path.unlink(missing_ok=True)
    if rejects:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("id", "reason"), *rejects])
        write_atomically(path, text.getvalue())
