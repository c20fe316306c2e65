"""What the commands that go through clips have in common: options, processes, how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import torch

from datasets.loading.workers import LoaderStalledError
from engine.inference.listing import SUFFIXES
from engine.inference.parts import Work
from engine.inference.sources import ReadSettings
from engine.parallel.world import World, check_slurm_tasks, distributed_if_launched
from engine.records.runlog import setup_console


def add_options(parser: argparse.ArgumentParser, batch_size: int | None) -> None:
    """The options that say which files are taken, and how they are gone through.

    Args:
        parser: The command's.
        batch_size: The default; None leaves it to the model.
    """
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
    parser.add_argument("--batch_size", type=positive, default=batch_size)
    parser.add_argument("--part_size", type=positive, help="clips per saved part; default: 8 batches")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read, for each process")
    parser.add_argument("--device", help="what to compute on; default: a GPU where there is one")


def read_settings(options: argparse.Namespace) -> ReadSettings:
    """What the options say about files."""
    return ReadSettings(options.only, options.keep_truncated, options.audio_track, options.video_track)


def chosen_work(options: argparse.Namespace, batch_size: int, bf16: bool) -> Work:
    """What the options say about the work.

    Args:
        options: Of `add_options`.
        batch_size: Clips to a batch.
        bf16: Whether to compute in bfloat16.
    """
    return Work(batch_size, options.part_size or 8 * batch_size, options.num_workers, bf16)


def positive(word: str) -> int:
    """A number of at least 1, for argparse."""
    if not word.isdigit() or not int(word):
        raise argparse.ArgumentTypeError(f"{word} is not a number of at least 1")
    return int(word)


def check_device(name: str) -> None:
    """Raises ``ValueError`` unless torch can compute on the device."""
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # torch raises the former where it has no CUDA at all
        raise ValueError(f"--device {name} can't be used here: {str(error).splitlines()[0]}") from error


def run_command(parser: argparse.ArgumentParser, device: str | None, main: Callable[[World], str]) -> None:
    """Calls ``main`` in this process, or in each one that torchrun started, and prints what it says.

    Args:
        parser: For its name.
        device: What ``--device`` says.
        main: The command; every rank calls it.

    Raises:
        SystemExit: ``main`` raised a ``ValueError``; the exit status is 1.
    """
    setup_console(is_main=os.environ.get("RANK", "0") == "0")
    try:
        check_slurm_tasks(os.environ, parser.prog)
        if device is not None:
            check_device(device)
        with distributed_if_launched() as world:
            said = main(world if device is None else replace(world, device=torch.device(device)))
            if world.is_main:
                print(said, flush=True)
    except (ValueError, OSError, LoaderStalledError) as error:
        _fail(f"{parser.prog}: error: {error}\n")


def _fail(message: str) -> NoReturn:
    """Ends this process; one of several at once, since the others may wait for it in a collective."""
    sys.stderr.write(message)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise SystemExit(1)
    sys.stderr.flush()
    os._exit(1)
