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
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser
from tqdm import tqdm

from datasets.durable import TEMPORARY_SUFFIX
from datasets.encode import Encoded, Encoder, EncodeSettings, Work
from datasets.fbank import Moments, spread_rows
from datasets.index import INDEX_NAME, Reject, ShardIndex, build_table
from datasets.journal import Job, PrepareError, Progress, SplitJournal, compare_settings, forget
from datasets.labels import LabelFileError, Vocabulary, read_classes, read_label_file, vocabulary_of
from datasets.output import (
    REJECTS_NAME,
    OpenShard,
    ProgressBar,
    count_reasons,
    finished_sets,
    summary,
    write_rejects,
)
from datasets.pieces import FileLength, cut_into_clips
from datasets.pool import Failure, WorkerPool
from datasets.shards import ShardError
from datasets.sources import (
    VIDEO_SUFFIXES,
    Files,
    Plan,
    Task,
    list_videos,
    plan_folders,
    plan_labelled,
    plan_unlabelled,
    rejected,
)
from datasets.sources import shuffled as shuffled_tasks

T = TypeVar("T")
R = TypeVar("R")

_WORKERS_NEED = ("datasets.encode", "torchaudio.compliance.kaldi")
_NO_INFLUENCE = ("out", "split", "num_workers", "timeout_seconds")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(EncodeSettings):
    """What to prepare, and how.

    Attributes:
        source: A folder of videos (searched recursively), a text file of paths, one a line, a CSV with a
            column path (and label, split, start, end), or one video. Relative paths are relative to the file's folder.
        out: Folder for the shards; where the label file has splits, each goes to a folder of its own in it.
        labels: AudioSet's *_segments.csv, VGGSound's CSV, or a CSV with a column path; the form is
            recognised.
        classes: The vocabulary: AudioSet's class_labels_indices.csv, a text file with one class a line, or
            the index.json of another set. Without it: the class file beside AudioSet's label file, or all
            labels of the label file in sorted order.
        folders_as_classes: The first folder of each path below source is its class.
        split: Only this split of the label file.
        files: Whether files named by an id alone are clips already cut, whole videos, or judged by their
            duration.
        shuffle: Shuffle the order of the clips.
        seed: Of the shuffle.
        shard_megabytes: Size at which a shard is finished.
        fbank_clips: Clips, evenly spread, on which mean and standard deviation of the log-mel values are
            measured.
        num_workers: Processes that decode; null for one per core.
        timeout_seconds: A clip that takes longer is rejected (timed_out).
    """

    source: str
    out: str
    labels: str | None = None
    classes: str | None = None
    folders_as_classes: bool = False
    split: str | None = None
    files: Files = "auto"
    shuffle: bool = True
    seed: int = 0
    shard_megabytes: float = 256.0
    fbank_clips: int = 1000
    num_workers: int | None = None
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels and self.folders_as_classes:
            raise ValueError("labels and folders_as_classes are two sources of labels; give one")
        if self.shard_megabytes <= 0 or (self.num_workers is not None and self.num_workers < 1):
            raise ValueError("shard_megabytes must be above 0 and num_workers at least 1")
        if self.fbank_clips < 1:
            raise ValueError(f"fbank_clips must be at least 1, got {self.fbank_clips}")


def prepare(config: PrepareConfig) -> list[Path]:
    """Makes the set, or goes on making it.

    Returns:
        The folders that hold an index now: ``out``, or one for each split.

    Raises:
        PrepareError: The source is missing or empty, no clip is usable, or ``out`` was begun with other
            settings.
        LabelFileError: The label file can't be used.
        OSError: The disk is full or fails. Starting again goes on after the last finished shard.
    """
    out = Path(config.out)
    settings = _settings(config)
    job = Job.load(out)
    if job is None:
        job = _begin(config, out, settings)
    else:
        compare_settings(settings, job.settings, out)
    for split in job.splits:
        folder = out / split if split else out
        if (folder / INDEX_NAME).is_file():
            print(f"already complete: {summary(folder, ShardIndex.load(folder))}", flush=True)
        else:
            _make_split(config, job, out, split)
    forget(out)
    if not (folders := finished_sets(out)):
        raise PrepareError(f"no clip of {config.source} could be used; see why in {REJECTS_NAME} in {out}")
    return folders


# Planning


def _settings(config: PrepareConfig) -> dict[str, object]:
    """Everything that has a say in what comes out, files by their content."""
    settings = {name: value for name, value in asdict(config).items() if name not in _NO_INFLUENCE}
    for name in ("labels", "classes"):
        path = getattr(config, name)
        if path and Path(path).is_file():
            settings[f"{name}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return settings


def _begin(config: PrepareConfig, out: Path, settings: dict[str, object]) -> Job:
    """Lists the inputs and writes the plan."""
    for index in finished_sets(out):
        made = dict(ShardIndex.load(index).settings)
        made.pop("split", None)
        compare_settings(settings, made, index)
    plans, unmatched, vocabulary = _plan(config)
    if config.split is not None:
        if config.split not in plans:
            known = [split for split in plans if split] or "none"
            raise PrepareError(
                f"split {config.split!r} is not in {config.labels or config.source}; its splits: {known}"
            )
        plans = {config.split: plans[config.split]}
    forget(out)  # of a plan that was never finished
    for split, plan in plans.items():
        folder = out / split if split else out
        folder.mkdir(parents=True, exist_ok=True)
        _check_free(folder)
        plan = cut_into_clips(plan, config.clip_seconds, partial(_lengths, config))
        order = shuffled_tasks(plan.tasks, config.seed) if config.shuffle else plan.tasks
        rejects = plan.rejects if split else plan.rejects + unmatched
        SplitJournal(out, split).create(Plan(order, rejects))
    if unmatched and None not in plans:
        write_rejects(out, unmatched)  # they belong to no split
    job = Job(settings, vocabulary.labels, list(plans))
    job.save(out)
    return job


def _lengths(config: PrepareConfig, tasks: Iterable[Task]) -> Iterator[float | None]:
    """How long the tasks' files are, in seconds; None where that can't be told."""
    with _pool(config, FileLength(str(_root(config)))) as pool:
        for _, length in tqdm(pool.map(tasks), "reading lengths", unit=" files", disable=None):
            yield None if isinstance(length, Failure) else length


def _pool(config: PrepareConfig, function: Callable[[T], R]) -> WorkerPool[T, R]:
    num_workers = config.num_workers or len(os.sched_getaffinity(0))
    return WorkerPool(function, num_workers, config.timeout_seconds, _WORKERS_NEED)


def _root(config: PrepareConfig) -> Path:
    """Folder that the paths of videos are relative to."""
    source = Path(config.source)
    return source if source.is_dir() else source.parent


def _plan(config: PrepareConfig) -> tuple[dict[str | None, Plan], list[Reject], Vocabulary]:
    source = Path(config.source)
    names = _names(source)
    labels = config.labels if names is not None else config.source
    if labels is not None:
        label_file = read_label_file(labels)
        if names is None and (not label_file.by_path or config.labels):
            raise PrepareError(
                f"{source} is a CSV, so it must list paths with their labels ({label_file.form} was found). "
                "Give the folder of videos as SOURCE and the label file as --labels"
            )
        vocabulary = vocabulary_of(label_file, config.classes)
        plans, unmatched = plan_labelled(names, label_file, vocabulary, _root(config), config.files)
        return plans, unmatched, vocabulary
    assert names is not None
    if config.folders_as_classes:
        plan, vocabulary = plan_folders(names, read_classes(config.classes) if config.classes else None)
        return {None: plan}, [], vocabulary
    return {None: plan_unlabelled(names)}, [], Vocabulary(())


def _names(source: Path) -> list[str] | None:
    """Paths of the videos, relative to the source's folder; None where a CSV names them."""
    if source.is_dir():
        names = list_videos(source)
        if not names:
            raise PrepareError(f"no video files (.mp4, .mkv, .webm, ...) in {source}")
        return names
    if not source.is_file():
        raise PrepareError(
            f"{source} does not exist; give a folder of videos, a text file of paths, or a CSV"
        )
    if source.suffix.lower() == ".csv":
        return None
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return [source.name]
    text = source.read_text(encoding="utf-8", errors="surrogateescape")
    names = [os.path.normpath(line.strip()) for line in text.splitlines() if line.strip()]
    if not names:
        raise PrepareError(f"{source} names no files")
    if "\0" in text:
        raise PrepareError(
            f"{source} is neither a video (.mp4, .mkv, ...) nor a text file of paths nor a CSV"
        )
    return names


def _check_free(folder: Path) -> None:
    """Refuses a folder with shards of unknown origin, which the new ones would be mixed up with."""
    strangers = [] if (folder / INDEX_NAME).is_file() else sorted(folder.glob("*.tar"))
    if strangers:
        raise PrepareError(f"{folder} holds {strangers[0].name} already, but no index; give an empty folder")


# Working the plan off


def _make_split(config: PrepareConfig, job: Job, out: Path, split: str | None) -> None:
    folder = out / split if split else out
    for leftover in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()
    journal = SplitJournal(out, split)
    progress = journal.load()
    progress.label_counts = progress.label_counts or [0] * len(job.labels)
    _write_shards(config, job, folder, journal, progress)
    rejects = journal.rejects()
    write_rejects(folder, rejects)
    if not progress.shards:
        print(f"{folder}: no clip could be used\n{count_reasons(rejects)}", flush=True)
        return
    index = ShardIndex(
        shards=tuple(progress.shards),
        labels=tuple(
            replace(label, count=n) for label, n in zip(job.labels, progress.label_counts, strict=True)
        ),
        settings=job.settings | ({"split": split} if split else {}),
        rejects=tuple(rejects),
        duration_seconds=round(progress.duration_seconds, 6),
        fbank=progress.fbank.stats(),
    )
    build_table(folder, index)
    index.save(folder)
    print(summary(folder, index), flush=True)


def _write_shards(
    config: PrepareConfig, job: Job, folder: Path, journal: SplitJournal, progress: Progress
) -> None:
    """Decodes the clips that are left and writes them; ``progress`` is complete afterwards."""
    encoder = Encoder(str(_root(config)), config, tuple(label.name for label in job.labels))
    num_tasks = journal.num_tasks()
    measured = set(spread_rows(num_tasks, config.fbank_clips))
    tasks = enumerate(journal.tasks(progress.next_task), start=progress.next_task)
    work = (Work(task, number in measured) for number, task in tasks)
    shard = OpenShard(folder, journal, progress)
    bar = ProgressBar(num_tasks, progress.next_task, len(journal.rejects()), folder)
    with _pool(config, encoder) as pool, bar:
        import webdataset.writer  # noqa: F401 (imports torch, which takes seconds; meanwhile the workers start)

        try:
            for (task, _), result in pool.map(work):
                if isinstance(result, Failure):
                    result = Encoded(rejected(task.source, *result), Moments())
                bar.advance(shard.add(task, result))
                if shard.size >= config.shard_megabytes * 1e6:
                    bar.note(shard.finish())
            bar.note(shard.finish())
        finally:
            shard.discard()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.prepare``."""
    parser = ArgumentParser(prog="python -m datasets.prepare", description="From raw videos to shards.")
    parser.add_argument(
        "source", type=str, help="folder of videos, text file of paths, or CSV with a column path"
    )
    parser.add_argument("out", type=str, help="folder for the shards; splits get folders of their own in it")
    parser.add_class_arguments(PrepareConfig, skip={"source", "out"})
    options = parser.instantiate(parser.parse_args(arguments))
    try:
        config = PrepareConfig(**vars(options))
    except ValueError as error:
        parser.error(str(error))
    try:
        prepare(config)
    except (PrepareError, LabelFileError, ShardError) as error:
        raise SystemExit(f"datasets.prepare: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on after the last finished shard") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemExit(
            f"datasets.prepare: no space left on the disk of {config.out}. What is finished is kept; make "
            "room and give the same command again to go on"
        ) from error


if __name__ == "__main__":
    main()
