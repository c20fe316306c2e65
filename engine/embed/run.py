"""Vectors of every clip: ``python -m engine.embed MODEL SOURCE OUT``.

MODEL is anything that ``models.load_pretrained`` takes, or a folder of transformers (`engine.embed.backbones`);
SOURCE a folder of shards, or of videos, sounds or pictures; OUT a ``.parquet`` or ``.npz`` file. Clips that
can't be read are listed in ``OUT.rejects.csv``.

Vectors are kept in parts beside OUT until all are there, so a command that was interrupted goes on where it
was when it is given again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
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
from datasets.loading.reader import FrameChoice, all_frames, middle_frame
from datasets.loading.workers import LoaderStalledError, make_loader
from datasets.media.suffixes import describe_others
from engine.embed.backbones import is_backbone, load_backbone
from engine.embed.embedder import EarsightEmbedder, Embedder
from engine.embed.sources import SUFFIXES, EmbedSource, open_source
from engine.embeddings import Columns, check_target, load_npz, write_embeddings
from engine.namesake import check_datasets
from engine.training.runlog import logger, setup_console
from home_paths import command_line
from models import load_pretrained
from models.convert import parse_settings
from models.weights.description import weights_hash
from terminal import show_control_characters

_FRAMES: dict[str, FrameChoice] = {"middle": middle_frame, "all": all_frames}
_REJECTS = ("reject_id", "reject_reason")


def load_embedder(model: str, frames: str = "middle", **known: Any) -> Embedder:
    """Opens a model to embed with.

    Args:
        model: What ``models.load_pretrained`` takes, or a folder of transformers.
        frames: ``middle`` for a clip's middle frame, ``all`` for the mean over all.
        known: Fields of the model's config that its file doesn't tell.
    """
    if Path(model).is_dir() and is_backbone(Path(model)):
        return load_backbone(Path(model), _FRAMES[frames])
    return EarsightEmbedder(load_pretrained(model, **known), _FRAMES[frames])


class EmbedJob:
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

    def left(self) -> list[int]:
        """The parts that are still to do."""
        return [part for part in range(len(self.starts)) if not _is_whole(self.path(part))]

    def rows(self, part: int) -> range:
        """The clips of a part."""
        return range(self.starts[part], min(self.starts[part] + self.part_size, self.count))

    def keep(self, part: int, columns: Columns) -> None:
        """Writes a part; it is found only when it is whole."""
        with replacing(self.path(part)) as file:
            np.savez(file, **columns)  # type: ignore[arg-type]

    def parts(self) -> Iterator[Columns]:
        """All parts in order."""
        for part in range(len(self.starts)):
            yield load_npz(self.path(part))


def _is_whole(part: Path) -> bool:
    """Whether a part is there and undamaged; one that lost bytes when a machine went down is done again."""
    try:
        with zipfile.ZipFile(part) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def embed(
    embedder: Embedder,
    source: EmbedSource,
    target: Path,
    *,
    model_name: str = "",
    batch_size: int = 64,
    part_size: int = 4096,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> tuple[int, int]:
    """Embeds all clips of a source, or the rest of them.

    Args:
        embedder: The model.
        source: The clips.
        target: The file to write.
        model_name: Of the model, kept in the file.
        batch_size: Clips to a batch.
        part_size: Clips between two savings.
        num_workers: Processes that read.
        device: What to compute on.
        bf16: Whether to compute in bfloat16.

    Returns:
        Clips embedded, and clips that could not be read.

    Raises:
        ValueError: The target can't be written, there are parts of another job, or no clip could be read.
        LoaderStalledError: The processes that read make no progress.
    """
    check_target(target)
    origin = {
        "model": model_name,
        "weights_sha256": weights_hash(embedder.state_dict()),
        "source": source.identity,
        "frames": getattr(embedder.choose_frames, "__name__", str(embedder.choose_frames)),
        "bf16": bf16,
    }
    job = EmbedJob(target, origin, source.count, part_size)
    embedder = embedder.to(device).eval()
    for part, columns in _embed_parts(
        embedder, source, job, batch_size, num_workers, torch.device(device), bf16
    ):
        job.keep(part, columns)
    rejects = [
        row for part in job.parts() for row in zip(*(part[name].tolist() for name in _REJECTS), strict=True)
    ]
    filled = [part for part in job.parts() if len(part["id"])] if source.count else []
    if not filled:
        raise ValueError(f"none of the {source.count} clips could be read; the first: {rejects[:1]}")
    _write_rejects(target, rejects)
    wanted = (_vectors(part) for part in job.parts() if len(part["id"]))
    write_embeddings(target, wanted, source.classes, origin)
    shutil.rmtree(job.folder)
    return source.count - len(rejects), len(rejects)


def _vectors(part: Columns) -> Columns:
    return {name: values for name, values in part.items() if name not in _REJECTS}


@torch.no_grad()
def _embed_parts(
    embedder: Embedder,
    source: EmbedSource,
    job: EmbedJob,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    bf16: bool,
) -> Iterator[tuple[int, Columns]]:
    """The parts that are left, each as soon as it is whole."""
    left = job.left()
    ends: list[int] = []  # the number of batches after which each part is whole
    batches: list[list[Ticket]] = []
    for rows in map(job.rows, left):
        batches += [
            [Ticket(row, 0) for row in rows[i : i + batch_size]] for i in range(0, len(rows), batch_size)
        ]
        ends.append(len(batches))
    loader = _loader(source, batches, embedder.num_samples, num_workers)
    done = source.count - sum(len(batch) for batch in batches)
    found: list[Columns] = []
    with tqdm(total=source.count, initial=done, unit="clip", disable=None) as bar:
        for number, batch in enumerate(loader, start=1):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                found.append(_columns(embedder, batch.to(device)))
            bar.update(len(batch) + len(batch.failures))
            if number == ends[0]:
                ends.pop(0)
                yield left.pop(0), _joined(found)
                found = []


def _loader(
    source: EmbedSource, batches: list[list[Ticket]], num_samples: int, num_workers: int
) -> DataLoader[AVBatch]:
    join = partial(collate, num_samples=num_samples, num_classes=len(source.classes))
    reading = DataConfig(train="what is embedded", num_workers=num_workers, prefetch_factor=2)
    return make_loader(reading, source.clips, cast(Any, batches), join)


def _columns(embedder: Embedder, batch: AVBatch) -> Columns:
    for failure in batch.failures:
        logger.warning("not embedded: %s: %s", failure.id, failure.reason)
    columns: Columns = {
        "reject_id": np.array([failure.id for failure in batch.failures], dtype=np.str_),
        "reject_reason": np.array([failure.reason for failure in batch.failures], dtype=np.str_),
        "id": np.array(batch.ids, dtype=np.str_),
    }
    if len(batch):
        columns |= {name: value.float().cpu().numpy() for name, value in embedder(batch).items()}
        if batch.labels is not None:
            columns["labels"] = batch.labels.cpu().numpy()
    return columns


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


def check_device(name: str) -> None:
    """Raises ``ValueError`` unless torch can compute on the device."""
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # torch raises the former where it has no CUDA at all
        raise ValueError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from error


def _positive(word: str) -> int:
    if not word.isdigit() or not int(word):
        raise argparse.ArgumentTypeError(f"{word} is not a number of at least 1")
    return int(word)


def main(arguments: Sequence[str] | None = None) -> None:
    """Embeds what the command line names."""
    show_control_characters()
    check_datasets()
    parser = argparse.ArgumentParser(
        prog="python -m engine.embed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "model", help="a run, checkpoint, exported model, published file, or transformers folder"
    )
    parser.add_argument("source", help="a folder of shards, or of videos, sounds or pictures")
    parser.add_argument("target", type=Path, help="a .parquet or .npz file")
    parser.add_argument("--frames", choices=list(_FRAMES), default="middle")
    parser.add_argument(
        "--only", choices=list(SUFFIXES), help="which files, where a folder holds several kinds"
    )
    parser.add_argument(
        "--keep_truncated", action="store_true", help="take what is there of files damaged or cut off"
    )
    parser.add_argument(
        "--audio_track", help="which of several audio tracks: a number from 0, or a language (eng)"
    )
    parser.add_argument("--video_track", help="which of several video tracks, likewise")
    parser.add_argument("--batch_size", type=_positive, default=64)
    parser.add_argument("--part_size", type=_positive, default=4096, help="clips per saved part")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args(command_line(arguments))
    setup_console(is_main=True)
    try:
        check_target(options.target)
        check_device(options.device)
        embedder = load_embedder(options.model, options.frames, **parse_settings(options.settings))
        source = open_source(
            options.source,
            embedder,
            options.only,
            options.keep_truncated,
            options.audio_track,
            options.video_track,
        )
        if source.others:
            logger.warning("not taken: other files in %s: %s", options.source, describe_others(source.others))
        done, rejected = embed(
            embedder, source, options.target, model_name=options.model, batch_size=options.batch_size,
            part_size=options.part_size, num_workers=options.num_workers, device=options.device, bf16=options.bf16,
        )  # fmt: skip
    except (ValueError, LoaderStalledError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"{done} clips embedded, {rejected} could not be read; wrote {options.target}")
