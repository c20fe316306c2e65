"""From raw videos to shards, in one command that can be killed at any moment and started again.

    python -m datasets.prepare SOURCE OUT [--labels FILE] [options]

Inputs are listed once, in an order that the settings alone decide, and worked off by a pool of processes; the
parent writes results in that order. So what comes out does not depend on the number of workers nor on when a
run was interrupted. Shards are given their names when they are whole, and ``index.json`` comes last: until
then no reader takes the folder for a set.

Unless told not to, the order is shuffled: files come sorted by folder, often by class, and readers shuffle
only within a window of several shards, so a batch from unshuffled shards would hold few classes. It also
makes the first clips a fair sample of the set.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser
from tqdm import tqdm

from atomic import TEMPORARY_SUFFIX, check_writable, refuse_links
from datasets.console import quiet_end
from datasets.index import build_table
from datasets.prepare.config import PrepareConfig
from datasets.prepare.encode import Encoded, Encoder, Work
from datasets.prepare.fbank_stats import Moments, spread_rows
from datasets.prepare.planning import make_plan, missing_folders, removed_if_empty
from datasets.prepare.resume import Job, Progress, SplitJournal, compare_settings, forget
from datasets.prepare.segments import FileLength
from datasets.prepare.shard_output import (
    REJECTS_NAME,
    OpenShard,
    ProgressBar,
    finished_sets,
    summary,
    write_rejects,
)
from datasets.prepare.sources import PrepareError, Task, rejected_clip
from datasets.shards.manifest import INDEX_NAME, Reject, ShardIndex
from datasets.worker_pool import Failure, WorkerPool
from home_paths import command_line
from terminal import show_control_characters

T = TypeVar("T")
R = TypeVar("R")

_WORKERS_NEED = ("datasets.prepare.encode", "torchaudio.compliance.kaldi")


def prepare(config: PrepareConfig) -> list[Path]:
    """Makes the set, or goes on making it.

    Returns:
        The folders that hold an index now: ``out``, or one for each split.

    Raises:
        PrepareError: The source is missing or empty, or goes while it is read; no clip is usable; ``out`` was begun
            with other settings, or another process is at work in it.
        LabelFileError: The label file can't be used.
        OSError: The disk is full or fails. Starting again goes on after the last finished shard.
    """
    out = Path(config.out)
    try:
        refuse_links(out)
    except ValueError as error:
        raise PrepareError(str(error)) from None
    if missing := missing_folders(out):
        check_writable(out)
    # Nothing is removed where it is another process that has made the folder.
    with _alone(out), removed_if_empty(missing):
        return _prepare(config, out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps a second process out of the folder, where the file system has locks."""
    try:
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # no folder, or not to be listed: who wants to write there says so
        yield
        return
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(
                f"another datasets.prepare is at work in {out}: wait until it is done, or name another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


def _prepare(config: PrepareConfig, out: Path) -> list[Path]:
    settings = config.settings()
    job = Job.load(out)
    if job is not None:
        compare_settings(settings, job.settings, out)
        _check_source(config)
        check_writable(out)
    else:
        for finished in finished_sets(out):
            made = dict(ShardIndex.load(finished).settings)
            made.pop("split", None)
            compare_settings(settings, made, finished)
        if finished_sets(out) == [out]:  # without splits: nothing is left to plan
            _note_complete(out)
            return [out]
        job = make_plan(config, partial(_lengths, config))
    for split in job.splits:
        folder = out / split if split else out
        if (folder / INDEX_NAME).is_file():
            _note_complete(folder)
        else:
            _make_split(config, job, out, split)
    forget(out)
    if not (folders := finished_sets(out)):
        raise PrepareError(f"no clip of {config.source} could be used; see why in {REJECTS_NAME} in {out}")
    return folders


def _note_complete(folder: Path) -> None:
    print(f"already complete: {summary(folder, ShardIndex.load(folder))}", flush=True)


def _lengths(config: PrepareConfig, tasks: Iterable[Task]) -> Iterator[float | None]:
    """How long the tasks' files are, in seconds; None where that can't be told."""
    with _pool(config, FileLength(str(config.root))) as pool:
        for _, length in tqdm(pool.map(tasks), "reading lengths", unit=" files", disable=None):
            if length is None or isinstance(length, Failure):
                _check_source(config)
                length = None
            yield length


def _pool(config: PrepareConfig, function: Callable[[T], R]) -> WorkerPool[T, R]:
    num_workers = config.num_workers or len(os.sched_getaffinity(0))
    return WorkerPool(function, num_workers, config.timeout_seconds, _WORKERS_NEED)


def _make_split(config: PrepareConfig, job: Job, out: Path, split: str | None) -> None:
    folder = out / split if split else out
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()
    journal = SplitJournal(out, split)
    progress = journal.load()
    progress.label_counts = progress.label_counts or [0] * len(job.labels)
    _write_shards(config, job, folder, journal, progress)
    rejects = write_rejects(folder, journal.rejects())
    if not progress.shards:
        print(f"{folder}: no clip could be used\n  {rejects}", flush=True)
        return
    index = ShardIndex(
        shards=tuple(progress.shards),
        labels=tuple(
            replace(label, count=n) for label, n in zip(job.labels, progress.label_counts, strict=True)
        ),
        settings=job.settings | ({"split": split} if split else {}),
        rejects=rejects,
        duration_seconds=round(progress.duration_seconds, 6),
        fbank=progress.fbank.stats(),
    )
    build_table(folder, index)
    index.save(folder)
    print(summary(folder, index), flush=True)


def _check_source(config: PrepareConfig) -> None:
    """Tells a disk that is gone, whose every clip would be missing, from a clip that is no good.

    Raises:
        PrepareError: The source is not there, or is an empty folder as an unmounted disk leaves behind.
    """
    try:
        with os.scandir(config.root) as entries:
            there = os.path.exists(config.source) and next(entries, None) is not None
    except OSError:
        there = False
    if not there:
        raise PrepareError(
            f"{config.source} is not there any more; was its disk unmounted? What is finished is kept; bring it "
            "back and give the same command again to go on"
        )


def _write_shards(
    config: PrepareConfig, job: Job, folder: Path, journal: SplitJournal, progress: Progress
) -> None:
    """Decodes the clips that are left and writes them; ``progress`` is complete afterwards."""
    encoder = Encoder(str(config.root), config, tuple(label.name for label in job.labels))
    num_tasks = journal.num_tasks()
    measured = set(spread_rows(num_tasks, config.fbank_clips))
    tasks = enumerate(journal.tasks(progress.next_task), start=progress.next_task)
    work = (Work(task, number in measured) for number, task in tasks)
    shard = OpenShard(folder, journal, progress)
    bar = ProgressBar(num_tasks, progress.next_task, journal.num_rejects(), folder)
    with _pool(config, encoder) as pool, bar:
        import webdataset.writer  # noqa: F401 (imports torch, which takes seconds; meanwhile the workers start)

        try:
            for (task, _), result in pool.map(work):
                if isinstance(result, Failure):
                    result = Encoded(rejected_clip(task, *result), Moments())
                if isinstance(result.outcome, Reject):
                    _check_source(config)
                bar.advance(shard.add(task, result))
                if shard.size >= config.shard_megabytes * 1e6:
                    bar.note(shard.finish())
            bar.note(shard.finish())
        finally:
            shard.discard()


@quiet_end()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.prepare``."""
    show_control_characters()
    parser = ArgumentParser(
        prog="python -m datasets.prepare", description="From raw videos to shards.", allow_abbrev=False
    )
    parser.add_argument(
        "source", type=str, help="folder of videos, text file of paths, or CSV with a column path"
    )
    parser.add_argument("out", type=str, help="folder for the shards; splits get folders of their own in it")
    parser.add_class_arguments(PrepareConfig, skip={"source", "out"})
    options = parser.instantiate(parser.parse_args(command_line(arguments)))
    try:
        config = PrepareConfig(**vars(options))
    except ValueError as error:
        parser.error(str(error))
    try:
        prepare(config)
    except ValueError as error:  # PrepareError and its like
        raise SystemExit(f"datasets.prepare: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on after the last finished shard") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise SystemExit(f"datasets.prepare: {error}") from error
        raise SystemExit(
            f"datasets.prepare: no space left on the disk of {config.out}. What is finished is kept; make "
            "room and give the same command again to go on"
        ) from error
