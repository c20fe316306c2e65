"""What a fine-tuned model says of videos: ``python -m engine.predict RUN VIDEOS OUT``.

RUN is a run of ``main_finetune.py``, or a checkpoint or file of weights within it; VIDEOS a file, a folder of videos,
sounds or pictures, a CSV with a column ``path``, or a folder of shards; OUT a ``.jsonl``, ``.csv`` or ``.parquet`` file
with the probabilities of each head for each window. What can't be read is listed in ``OUT.rejects.csv``.

A command that was interrupted goes on where it was when it is given again, and writes the same. Started by torchrun,
its processes share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.batch import AVBatch, ReadFailure
from datasets.loading.config import ClipNeeds
from datasets.media.container import SAMPLE_RATE
from datasets.media.suffixes import describe_others
from engine.embeddings import Columns
from engine.inference.command import add_options, chosen_work, read_settings, run_command
from engine.inference.parts import Work, run_parts
from engine.inference.sources import ClipSource, is_shards, open_files, open_shards
from engine.inference.windows import find_pieces
from engine.namesake import check_datasets
from engine.parallel.world import World
from engine.predict.output import check_target, head_column, write_predictions
from engine.predict.whisper import Transcriber
from engine.records.runlog import logger
from engine.tasks.finetune import open_predictor, run_folder
from engine.tasks.predictor import NOTHING, Predictor
from engine.tasks.preparation import kept_preparation
from home_paths import command_line
from models.weights.description import weights_hash
from terminal import show_control_characters


def predict(
    predictor: Predictor,
    source: ClipSource,
    target: Path,
    *,
    model_name: str = "",
    transcriber: Transcriber | None = None,
    work: Work | None = None,
    world: World | None = None,
) -> tuple[int, int]:
    """Predicts all clips of a source, or the rest of them; every rank calls it.

    Args:
        predictor: The model.
        source: The clips.
        target: The file to write.
        model_name: Of the model, kept in Parquet files.
        transcriber: Writes down what is said where nobody else has; the source's clips have sound.
        work: Batches, parts, readers, precision.
        world: The processes; None is this one alone, on a CPU.

    Returns:
        Windows predicted, and those that could not be read.

    Raises:
        ValueError: The target can't be written, there are parts of another job, or no clip could be read.
    """
    check_target(target)
    work, world = work or Work(), world or World(0, 1, torch.device("cpu"))
    origin = {
        "model": model_name,
        "weights_sha256": weights_hash(predictor.state_dict()),
        "source": source.identity,
        "bf16": work.bf16,
    }
    predictor = predictor.to(world.device).eval()
    if transcriber is not None:
        origin["transcriber_sha256"] = weights_hash(transcriber.state_dict())
        transcriber = transcriber.to(world.device)

    def begin(batch: AVBatch) -> AVBatch:
        batch = batch if transcriber is None else transcriber(batch)
        lacking = (~predictor.takes(batch)).nonzero().flatten().tolist()
        return batch.without({place: ReadFailure(batch.ids[place], "", NOTHING) for place in lacking})

    def columns(batch: AVBatch) -> Columns:
        found = predictor.predict(batch)
        probabilities = {head_column(head): found[head].float().cpu().numpy() for head in predictor.heads}
        return _places(source, batch) | _texts(predictor, batch) | probabilities

    def write(parts: Iterable[Columns]) -> None:
        write_predictions(target, parts, predictor.heads, origin)

    return run_parts(columns, write, source, target, origin, work, world, begin)


def _places(source: ClipSource, batch: AVBatch) -> Columns:
    """Where a batch's windows begin and end, in seconds: as far as there is sound, if it is heard."""
    pieces = [None if source.pieces is None else source.pieces[row] for row in batch.rows.tolist()]
    start = np.array([0.0 if piece is None else piece.start for piece in pieces])
    end = np.array([np.nan if piece is None or piece.end is None else piece.end for piece in pieces])
    if batch.num_samples is not None:
        heard = batch.num_samples.cpu().numpy()
        end = np.where(heard > 0, start + heard / SAMPLE_RATE, end)
    return {"start": start.round(3), "end": end.round(3)}


def _texts(predictor: Predictor, batch: AVBatch) -> Columns:
    if not predictor.needs.text:
        return {}
    texts = batch.text or [None] * len(batch)
    return {"text": np.array([text or "" for text in texts], dtype=np.str_)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts what the command line names."""
    show_control_characters()
    check_datasets()
    parser = argparse.ArgumentParser(
        prog="python -m engine.predict", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="a run of main_finetune.py, or weights within it")
    parser.add_argument("source", help="a file, a folder of files, a CSV with a column path, or shards")
    parser.add_argument("target", type=Path, help="a .jsonl, .csv or .parquet file")
    parser.add_argument("--whisper", type=Path, help="a folder of transformers: text where there is none")
    parser.add_argument(
        "--window",
        type=_seconds,
        help="seconds; default: as long as the training clips, or as the model hears",
    )
    parser.add_argument(
        "--hop", type=_seconds, help="seconds from one window to the next; default: the window"
    )
    add_options(parser, batch_size=None)
    options = parser.parse_args(command_line(arguments))
    run_command(parser, options.device, partial(_predict, options))


def _seconds(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{word} is no number of seconds above 0")
    return value


def _predict(options: argparse.Namespace, world: World) -> str:
    check_target(options.target)
    predictor = open_predictor(options.run)
    needs, transcriber = predictor.needs, None
    if options.whisper is not None:
        if not needs.text:
            raise ValueError("--whisper: this model reads no text")
        needs, transcriber = replace(needs, audio=True), Transcriber(options.whisper)
    source = _open_source(options, needs, world)
    if source.others:
        logger.warning("not taken: other files in %s: %s", options.source, describe_others(source.others))
    work = chosen_work(
        options, options.batch_size or predictor.batch_size, predictor.parallel.uses_bf16(world.device)
    )
    done, rejected = predict(
        predictor, source, options.target,
        model_name=str(options.run), transcriber=transcriber, work=work, world=world,
    )  # fmt: skip
    return f"{done} windows predicted, {rejected} could not be read; wrote {options.target}"


def _open_source(options: argparse.Namespace, needs: ClipNeeds, world: World) -> ClipSource:
    settings = read_settings(options)
    if is_shards(options.source):
        for name in ("window", "hop"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is of files; clips of shards are taken as they are")
        return open_shards(options.source, needs, settings, check_shards=world.is_main)
    preparation = kept_preparation(run_folder(options.run))
    heard = needs.num_samples / SAMPLE_RATE
    window = options.window or min(heard, preparation.clip_seconds or heard)
    if needs.audio and window > heard:
        raise ValueError(
            f"--window {window:g} is longer than the {heard:g} s that this model hears at a time"
        )
    listing, pieces = find_pieces(
        Path(options.source), needs, settings.only, window, options.hop or window, world
    )
    made = asdict(preparation)
    del made["clip_seconds"]
    return open_files(listing, pieces, needs, replace(settings, **made))
