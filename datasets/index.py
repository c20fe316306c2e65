"""The pass over shards by which their table is made, and the index of shards made elsewhere.

    python -m datasets.index SHARDS

indexes a folder of WebDataset tars in place: sound (flac, wav, mp3, ogg) and one or several pictures (jpg,
png) a sample, or a video (mp4, ...). Labels come from ``labels`` or ``label`` in a sample's json, or from
its ``.cls``.
"""

from __future__ import annotations

import argparse
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from atomic import check_writable
from datasets.console import quiet_end
from datasets.shards.manifest import INDEX_NAME, Label, ShardIndex, is_unfinished, label_ids, missing_index
from datasets.shards.names import is_file_name
from datasets.shards.scan import ScannedSample, ShardScan, scan_shard
from datasets.shards.table import ClipTable
from datasets.shards.table_builder import TableBuilder, TableRow
from datasets.shards.tar import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ShardError,
    ShardInfo,
)
from home_paths import command_line
from terminal import show_control_characters


def build_table(
    folder: Path | str,
    index: ShardIndex,
    *,
    hashing: bool = False,
    num_workers: int = 4,
    progress: Callable[[int], object] = lambda count: None,
) -> ClipTable:
    """Makes the table of an indexed folder by a pass over its shards' headers and metadata.

    Args:
        folder: The set's folder.
        index: Its index.
        hashing: Also compare every shard's SHA-256 with the index.
        num_workers: Shards read at a time.
        progress: Called with the number of samples after each shard.

    Raises:
        ShardError: A shard is missing, damaged, or not what the index says; or a label is not in the
            vocabulary.
    """
    folder = Path(folder)
    check_shards(folder, index)
    ids = label_ids(index.labels)
    with TableBuilder(folder) as builder:
        scans = _scan_all([folder / shard.name for shard in index.shards], hashing, num_workers)
        for shard, scan in zip(index.shards, scans, strict=True):
            _compare(folder / shard.name, shard, scan.info)
            builder.add(shard.name, [_table_row(scan, sample, ids) for sample in scan.samples])
            progress(shard.samples)
        return builder.save(index.fingerprint, len(index.labels))


def check_shards(folder: Path, index: ShardIndex) -> None:
    """Checks that every shard is there and has the size that the index gives.

    Raises:
        ShardError: Names the first shard that differs, with both sizes.
    """
    for shard in index.shards:
        check_size(folder / shard.name, shard)


def check_size(path: Path, shard: ShardInfo) -> None:
    """Checks that a shard is there and has the size that the index gives.

    Raises:
        ShardError: It is not so; names file, expected and found size.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(f"shard {path} is in the index but can't be opened: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its writer
        raise ShardError(f"shard {path} is no regular file")
    found = status.st_size
    if found != shard.bytes:
        raise ShardError(
            f"shard {path} has {found} bytes, the index says {shard.bytes}: it was cut or changed. Bring it "
            f"back, or index the folder again: python -m datasets.index {path.parent} --overwrite"
        )


def _compare(path: Path, expected: ShardInfo, found: ShardInfo) -> None:
    if found.samples != expected.samples:
        raise ShardError(f"shard {path} has {found.samples} samples, the index says {expected.samples}")
    if found.sha256 and expected.sha256 and found.sha256 != expected.sha256:
        raise ShardError(
            f"shard {path} has SHA-256 {found.sha256}, the index says {expected.sha256}: it was changed"
        )


def _scan_all(paths: Sequence[Path], hashing: bool, num_workers: int) -> Iterator[ShardScan]:
    with ThreadPoolExecutor(num_workers) as pool:  # hashing and reading let go of the interpreter lock
        # A few shards ahead and no more, so that memory does not grow with the set.
        pending = []
        for path in paths:
            pending.append(pool.submit(scan_shard, path, hashing))
            if len(pending) > num_workers:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _table_row(scan: ShardScan, sample: ScannedSample, ids: Mapping[int | str, int]) -> TableRow:
    unknown = [label for label in sample.labels if label not in ids]
    if unknown:
        raise ShardError(
            f"{scan.info.name}: label {unknown[0]!r} of sample {sample.key!r} is not in the vocabulary"
        )
    return TableRow(
        key=sample.key,
        id=clip_id(scan.info, sample),
        labels=sorted({ids[label] for label in sample.labels}),
        duration=_duration(sample),
        members=[(suffix, member.offset, member.size) for suffix, member in sample.members.items()],
        plain=all(member.plain for member in sample.members.values()),
        frame_times=_frame_times(sample),
    )


def clip_id(shard: ShardInfo, sample: ScannedSample) -> str:
    """A clip's id, or one made of shard and key: keys are often running numbers that restart in each shard."""
    return str(sample.metadata.get("id") or f"{shard.name.removesuffix('.tar')}/{sample.key}")


def _frame_times(sample: ScannedSample) -> list[float]:
    """When the pictures are shown; empty unless there is one time a picture (``datasets.check`` tells of others)."""
    times = sample.metadata.get("frame_times")
    pictures = sum(suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in sample.members)
    if not isinstance(times, list) or len(times) != pictures:
        return []
    known = all(isinstance(time, int | float) for time in times)
    return times if known else []


def _duration(sample: ScannedSample) -> float:
    value = sample.metadata.get("duration")
    return float(value) if isinstance(value, int | float) else 0.0


def index_folder(
    folder: Path | str,
    *,
    earlier: ShardIndex | None = None,
    num_workers: int = 4,
    progress: Callable[[int], object] = lambda count: None,
) -> ShardIndex:
    """Indexes the shards of a folder: reads every ``*.tar`` once, writes ``index.json`` and the table.

    Args:
        folder: The folder of shards.
        earlier: An index that knows more than the shards do: its vocabulary, settings, rejects and log-mel
            statistics stay. Without one the vocabulary is what the samples hold: the sorted names, or, where all
            labels are numbers, ``0 ... max``.
        num_workers: Shards read at a time.
        progress: Called with the number of samples after each shard.

    Raises:
        ShardError: The folder is missing, has no shards or is not finished, a shard can't be read, or a label is
            not in the earlier vocabulary; nothing is written then.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise ShardError(
            f"{folder} has no shards (*.tar) to index" if folder.is_dir() else missing_index(folder)
        )
    for path in paths:
        if not is_file_name(path.name):
            raise ShardError(
                f"{path}: its name may hold only letters, digits and . , + = @ ~ _ - blank; rename it"
            )
    if is_unfinished(folder):  # with an index it would pass for a finished set, which nobody goes on with
        raise ShardError(missing_index(folder))
    counts: Counter[int] = Counter()
    # Class ids, or, until all labels are known, numbers by order of appearance.
    numbers = label_ids(earlier.labels) if earlier else _Numbering()
    shards, duration = [], 0.0
    with TableBuilder(folder) as builder:
        for scan in _scan_all(paths, True, num_workers):
            if not any(map(_is_usable, scan.samples)):
                raise ShardError(
                    f"{folder / scan.info.name} holds no sound, picture or video that can be read"
                )
            shards.append(scan.info)
            rows = [_table_row(scan, sample, numbers) for sample in scan.samples]
            builder.add(scan.info.name, rows)
            counts.update(number for row in rows for number in row.labels)
            duration += sum(_duration(sample) for sample in scan.samples)
            progress(scan.info.samples)
        if earlier:
            labels = tuple(replace(label, count=counts[i]) for i, label in enumerate(earlier.labels))
            class_of = None
        else:
            labels = _vocabulary({label: counts[number] for label, number in numbers.items()})
            ids = label_ids(labels)
            class_of = [ids[label] for label in numbers]
        index = replace(
            earlier or ShardIndex(()), shards=tuple(shards), labels=labels, duration_seconds=duration
        )
        builder.save(index.fingerprint, len(index.labels), class_of)
    index.save(folder)
    return index


class _Numbering(dict[int | str, int]):
    """Gives every label that is asked for the next number."""

    def __contains__(self, label: object) -> bool:
        return True

    def __missing__(self, label: int | str) -> int:
        self[label] = len(self)
        return self[label]


def _is_usable(sample: ScannedSample) -> bool:
    """Whether a sample holds media, or says itself that it has none (``datasets.prepare --partial true``)."""
    endings = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    return "absent" in sample.metadata or any(name.rpartition(".")[2] in endings for name in sample.members)


def _vocabulary(counts: Mapping[int | str, int]) -> tuple[Label, ...]:
    numbers = [label for label in counts if isinstance(label, int)]
    if len(numbers) < len(counts):
        if numbers:
            names = [label for label in counts if isinstance(label, str)]
            raise ShardError(
                f"some labels are numbers ({numbers[0]}), others names ({names[0]!r}); use one kind"
            )
        return tuple(Label(str(name), count=counts[name]) for name in sorted(counts, key=str))
    if any(number < 0 for number in numbers):
        raise ShardError(f"label numbers begin at 0; {min(numbers)} was found")
    return tuple(Label(str(i), count=counts.get(i, 0)) for i in range(max(numbers, default=-1) + 1))


def _prepared(folder: Path) -> ShardIndex | None:
    """The index that is to be overwritten, if ``datasets.prepare`` made it: shards don't say all that it does."""
    try:
        index = ShardIndex.load(folder)
    except ShardError as error:
        print(
            f"{error}\nrebuilt from the shards alone: settings, rejects, MIDs, log-mel statistics and classes "
            "without clips are lost"
        )
        return None
    if not index.settings:
        return None
    print(
        f"{folder}: classes, settings, rejects and log-mel statistics are kept from the index that was there"
    )
    return index


@quiet_end()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.index``."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.index", description="Index a folder of shards in place."
    )
    parser.add_argument("shards", type=Path, help="folder of WebDataset tars")
    parser.add_argument("--overwrite", action="store_true", help="index again where there is an index.json")
    parser.add_argument("--num_workers", type=int, default=4, help="shards read at a time")
    options = parser.parse_args(command_line(arguments))
    try:
        if options.shards.is_dir():
            check_writable(options.shards)
        there = (options.shards / INDEX_NAME).is_file()
        earlier = _prepared(options.shards) if there and options.overwrite else None
        with tqdm(unit=" samples", desc="indexing") as bar:
            if there and not options.overwrite:
                index = ShardIndex.load(options.shards)
                table = build_table(
                    options.shards, index, hashing=True, num_workers=options.num_workers, progress=bar.update
                )
            else:
                index = index_folder(
                    options.shards, earlier=earlier, num_workers=options.num_workers, progress=bar.update
                )
                table = ClipTable.of(index, options.shards)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(
        f"{options.shards}: {len(index.shards)} shards, {index.samples} samples, {index.bytes / 1e9:.2f} GB, "
        f"{len(index.labels)} classes; with sound {table.num_with_audio}, "
        f"with pictures {table.num_with_frames}"
    )


if __name__ == "__main__":
    main()
