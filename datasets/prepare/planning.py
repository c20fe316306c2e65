"""From settings to a plan: which clips there are, in the order of making them.

The plan is made on the disk (``datasets.prepare.plan_db``) and ends as the files that a run follows
(``datasets.prepare.resume``), so its memory does not grow with the number of clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from atomic import check_writable
from datasets.media.suffixes import describe_others
from datasets.prepare.classes import Vocabulary, read_classes, vocabulary_of
from datasets.prepare.config import PrepareConfig
from datasets.prepare.labels import (
    LabelFile,
    LabelRow,
    read_label_file,
)
from datasets.prepare.matching import plan_folders, plan_labelled, plan_unlabelled
from datasets.prepare.plan_db import Scratch, open_scratch
from datasets.prepare.resume import Job, SplitJournal, forget
from datasets.prepare.segments import Lengths, cut_into_clips
from datasets.prepare.shard_output import write_rejects
from datasets.prepare.sources import PrepareError, is_video, listed_names
from datasets.shards.manifest import INDEX_NAME, PREPARE_FOLDER

_SCRATCH = "plan.scratch"  # no split can have a name with a dot


def make_plan(config: PrepareConfig, lengths: Lengths) -> Job:
    """Lists the inputs and writes the plan of every split into ``config.out``.

    Args:
        config: What is asked for.
        lengths: Reads how long files are.

    Raises:
        PrepareError: The source or the split is not there, or a folder holds shards already.
        LabelFileError: The label file can't be used.
    """
    out = Path(config.out)
    with _cleared(out):
        with open_scratch(out / PREPARE_FOLDER / _SCRATCH) as scratch:
            job = _plan(config, scratch, lengths)
        job.save(out)
        return job


def _plan(config: PrepareConfig, scratch: Scratch, lengths: Lengths) -> Job:
    out = Path(config.out)
    splits, vocabulary = _match(config, scratch)
    chosen: list[str | None] = splits if config.split is None else [config.split]
    if not set(chosen) <= set(splits):
        known = [split for split in splits if split] or "none"
        raise PrepareError(
            f"split {config.split!r} is not in {config.labels or config.source}; its splits: {known}"
        )
    for split in chosen:
        _check_free(out / split if split else out)
    for split in chosen:
        scratch.forget_clips()
        clips = cut_into_clips(scratch.tasks(split), config.clip_seconds, lengths)
        for number, clip in enumerate(clips):
            scratch.add_clip(clip, _place(config.seed, number) if config.shuffle else number, split)
        SplitJournal(out, split).create(scratch.clips(), scratch.rejects(split))
    if None not in splits and any(scratch.rejects(None)):
        write_rejects(out, scratch.rejects(None))  # they belong to no split
    return Job(config.settings(), vocabulary.labels, chosen)


@contextmanager
def _cleared(out: Path) -> Iterator[None]:
    """Forgets a plan that was never finished; leaves nothing behind if this one isn't either."""
    with removed_if_empty(missing_folders(out)):
        check_writable(out)
        forget(out)
        try:
            yield
        except BaseException:
            forget(out)
            raise


def missing_folders(folder: Path) -> list[Path]:
    """What has to be made for a folder to be there, itself first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]


@contextmanager
def removed_if_empty(folders: Sequence[Path]) -> Iterator[None]:
    """Removes folders that were made for the block if it fails and has left nothing in them."""
    try:
        yield
    except BaseException:
        for one in folders:
            with suppress(OSError):
                one.rmdir()
        raise


def _match(config: PrepareConfig, scratch: Scratch) -> tuple[list[str | None], Vocabulary]:
    """Takes files and label rows in and matches them; returns the splits and the vocabulary."""
    source = Path(config.source)
    lists_rows = _take_files(scratch, source)
    labels = config.source if lists_rows else config.labels
    if labels is not None:
        label_file = read_label_file(labels)
        if lists_rows and (not label_file.by_path or config.labels):
            raise PrepareError(
                f"{source} is a CSV, so it must list paths with their labels ({label_file.form} was found). "
                "Give the folder of videos as SOURCE and the label file as --labels"
            )
        used = _take_rows(scratch, label_file)
        vocabulary = vocabulary_of(label_file, used, config.classes)
        plan_labelled(scratch, label_file, vocabulary, config.root, config.files)
        return scratch.splits(), vocabulary
    if config.folders_as_classes:
        return [None], plan_folders(scratch, read_classes(config.classes) if config.classes else None)
    plan_unlabelled(scratch, listed=not source.is_dir())
    return [None], Vocabulary(())


def _take_files(scratch: Scratch, source: Path) -> bool:
    """Takes the videos in, by their paths relative to the source's folder; True where a CSV's rows name them."""
    if source.is_dir():
        scratch.find_files(source)
        if not any(scratch.files(1)):
            raise PrepareError(f"no video files (.mp4, .mkv, .webm, ...) in {source}{_named_others(scratch)}")
        if others := _named_others(scratch):
            print(f"{source}{others} (not taken)", flush=True)
    elif not source.is_file():
        raise PrepareError(
            f"{source} {'is no regular file' if source.exists() else 'does not exist'}; give a folder of videos, "
            "a text file of paths, or a CSV"
        )
    elif source.suffix.lower() == ".csv":
        return True
    elif is_video(source.name):
        scratch.add_files([source.name])
    else:
        scratch.add_files(listed_names(source))
        if not any(scratch.files(1)):
            raise PrepareError(f"{source} names no files")
    return False


def _named_others(scratch: Scratch) -> str:
    """What lies in the folder beside videos; empty for nothing."""
    others = scratch.others()
    return f"; other files there: {describe_others(others)}" if others else ""


def _take_rows(scratch: Scratch, labels: LabelFile) -> set[str]:
    """Takes the rows of a label file in; returns all their labels."""
    used: set[str] = set()

    def noted() -> Iterator[LabelRow]:
        for row in labels.rows():
            used.update(row.labels)
            yield row

    scratch.add_rows(noted())
    return used


def _check_free(folder: Path) -> None:
    """Refuses a folder with shards of unknown origin, which the new ones would be mixed up with."""
    strangers = [] if (folder / INDEX_NAME).is_file() else sorted(folder.glob("*.tar"))
    if strangers:
        raise PrepareError(f"{folder} holds {strangers[0].name} already, but no index; give an empty folder")


def _place(seed: int, number: int) -> int:
    """Where a clip comes in the shuffled order: 63 bits that depend on the seed and the clip's number alone."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
