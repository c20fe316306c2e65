"""Vectors of every clip: ``python -m engine.embed MODEL SOURCE OUT``.

MODEL is anything that ``models.load_pretrained`` takes, or a folder of transformers (`engine.embed.backbones`);
SOURCE a folder of shards, or of videos, sounds or pictures; OUT a ``.parquet`` or ``.npz`` file. Clips that
can't be read are listed in ``OUT.rejects.csv``.

Vectors are kept in parts beside OUT until all are there, so a command that was interrupted goes on where it
was when it is given again. Started by torchrun, its processes share the parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datasets.batch import AVBatch
from datasets.loading.reader import FrameChoice, all_frames, middle_frame
from datasets.media.suffixes import describe_others
from engine.embed.backbones import is_backbone, load_backbone
from engine.embed.embedder import EarsightEmbedder, Embedder
from engine.embeddings import Columns, check_target, write_embeddings
from engine.inference.command import add_options, chosen_work, read_settings, run_command
from engine.inference.parts import Work, run_parts
from engine.inference.sources import ClipSource, open_source
from engine.namesake import check_datasets
from engine.parallel.world import World
from engine.records.runlog import logger
from home_paths import command_line
from models import load_pretrained
from models.convert import parse_settings
from models.weights.description import weights_hash
from terminal import show_control_characters

_FRAMES: dict[str, FrameChoice] = {"middle": middle_frame, "all": all_frames}


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


def embed(
    embedder: Embedder,
    source: ClipSource,
    target: Path,
    *,
    model_name: str = "",
    work: Work | None = None,
    world: World | None = None,
) -> tuple[int, int]:
    """Embeds all clips of a source, or the rest of them; every rank calls it.

    Args:
        embedder: The model.
        source: The clips.
        target: The file to write.
        model_name: Of the model, kept in the file.
        work: Batches, parts, readers, precision.
        world: The processes; None is this one alone, on a CPU.

    Returns:
        Clips embedded, and clips that could not be read.

    Raises:
        ValueError: The target can't be written, there are parts of another job, or no clip could be read.
    """
    check_target(target)
    work, world = work or Work(), world or World(0, 1, torch.device("cpu"))
    origin = {
        "model": model_name,
        "weights_sha256": weights_hash(embedder.state_dict()),
        "source": source.identity,
        "frames": getattr(embedder.choose_frames, "__name__", str(embedder.choose_frames)),
        "bf16": work.bf16,
    }
    embedder = embedder.to(world.device).eval()

    def vectors(batch: AVBatch) -> Columns:
        columns = {name: value.float().cpu().numpy() for name, value in embedder(batch).items()}
        return columns if batch.labels is None else columns | {"labels": batch.labels.cpu().numpy()}

    def write(parts: Iterable[Columns]) -> None:
        write_embeddings(target, parts, source.classes, origin)

    return run_parts(vectors, write, source, target, origin, work, world)


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
    add_options(parser, batch_size=64)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args(command_line(arguments))
    run_command(parser, options.device, partial(_embed, options))


def _embed(options: argparse.Namespace, world: World) -> str:
    check_target(options.target)
    embedder = load_embedder(options.model, options.frames, **parse_settings(options.settings))
    settings = read_settings(options)
    source = open_source(options.source, embedder.needs, settings, check_shards=world.is_main)
    if source.others:
        logger.warning("not taken: other files in %s: %s", options.source, describe_others(source.others))
    work = chosen_work(options, options.batch_size, options.bf16)
    done, rejected = embed(embedder, source, options.target, model_name=options.model, work=work, world=world)
    return f"{done} clips embedded, {rejected} could not be read; wrote {options.target}"
