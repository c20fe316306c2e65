"""The index of a set of shards: ``index.json``, and the pass over shards made elsewhere that writes it.

    python -m datasets.index SHARDS

indexes a folder of WebDataset tars in place: sound (flac, wav, mp3, ogg) and one or several pictures (jpg,
png) a sample, or a video (mp4, ...). Labels come from ``labels`` or ``label`` in a sample's json, or from
its ``.cls``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.durable import write_atomically
from datasets.scan import ScannedSample, ShardScan, scan_shard
from datasets.shards import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    ShardError,
    ShardInfo,
)
from datasets.table import ClipTable
from datasets.table_builder import TableBuilder, TableRow

INDEX_NAME = "index.json"
PREPARE_FOLDER = ".prepare"  # is there while datasets.prepare is not done
FORMAT = "earsight-shards"
VERSION = 2


@dataclass(frozen=True)
class Label:
    """One class of the vocabulary; its id is its place in it.

    Attributes:
        name: Display name.
        mid: Machine id of AudioSet's ontology (``/m/09x0r``), or None.
        count: Samples that have it.
    """

    name: str
    mid: str | None = None
    count: int = 0


@dataclass(frozen=True)
class FbankStats:
    """Mean and standard deviation of the set's log-mel values, measured on ``clips`` of its clips."""

    mean: float
    std: float
    clips: int


@dataclass(frozen=True)
class Reject:
    """An input that went into no shard: where it came from, a stable reason, and what was seen."""

    source: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class RejectList:
    """The inputs that went into no shard, which a file beside the index lists one by one.

    Attributes:
        file: Its name: a CSV of source, reason and detail.
        sha256: Hex digest of it.
        counts: How many there are for each reason.
    """

    file: str
    sha256: str
    counts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of all of them."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.items())
        return f"rejected {self.total}: {reasons} (see {self.file})"


@dataclass(frozen=True)
class ShardIndex:
    """What lies in a folder of shards; ``index.json`` in memory.

    Attributes:
        shards: The shards in order.
        labels: The vocabulary; empty for a set without labels.
        fbank: Log-mel statistics, or None where nobody measured them.
        settings: What the shards were made with.
        rejects: Inputs left out; None where nobody knows, as for shards made elsewhere.
        duration_seconds: Length of all samples together.
    """

    shards: tuple[ShardInfo, ...]
    labels: tuple[Label, ...] = ()
    fbank: FbankStats | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rejects: RejectList | None = None
    duration_seconds: float = 0.0

    @property
    def samples(self) -> int:
        """Number of samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hex digest of what a table depends on: the shards and the vocabulary."""
        shards = [asdict(shard) for shard in self.shards]
        labels = [(label.name, label.mid) for label in self.labels]
        return hashlib.sha256(json.dumps([shards, labels]).encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path | str) -> ShardIndex:
        """Reads ``index.json`` of ``folder``.

        Raises:
            ShardError: The folder is missing, empty, or has no index or one that can't be read.
        """
        folder = Path(folder)
        path = folder / INDEX_NAME
        if not path.is_file():
            raise ShardError(_missing_index(folder))
        return cls.load_file(path, str(path))

    @classmethod
    def load_file(cls, path: Path, where: str) -> ShardIndex:
        """Reads an index file that came from ``where``.

        Raises:
            ShardError: It is no such index, or one of a version not known here.
        """
        try:
            content = json.loads(path.read_bytes())
            if content.get("format") != FORMAT:
                raise ShardError(f'{where} is no index of shards: "format" is not "{FORMAT}"')
            if content["version"] != VERSION:
                raise ShardError(
                    f"{where} has version {content['version']}, this program reads {VERSION}. Make the set anew "
                    "with datasets.prepare, or index its shards anew: python -m datasets.index FOLDER --overwrite"
                )
            return cls(
                shards=tuple(ShardInfo(**shard) for shard in content["shards"]),
                labels=tuple(Label(**label) for label in content["labels"]),
                fbank=FbankStats(**content["fbank"]) if content["fbank"] else None,
                settings=content["settings"],
                rejects=RejectList(**content["rejects"]) if content["rejects"] else None,
                duration_seconds=content["duration_seconds"],
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{where} can't be read as an index of shards: {error!r}") from error

    def save(self, folder: Path | str) -> Path:
        """Writes ``index.json`` into ``folder``, whole or not at all, and returns its path."""
        path = Path(folder) / INDEX_NAME
        content = {"format": FORMAT, "version": VERSION, "samples": self.samples, **asdict(self)}
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
        return path


def _missing_index(folder: Path) -> str:
    if not folder.exists():
        return f"the folder of shards {folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is no folder; give the folder that holds the shards and their {INDEX_NAME}"
    if any((place / PREPARE_FOLDER).is_dir() for place in (folder, folder.parent)):
        return (
            f"{folder} is not finished: datasets.prepare is at work on it or was interrupted. Wait, or give the "
            "same command again to go on"
        )
    splits = sorted(path.parent.name for path in folder.glob(f"*/{INDEX_NAME}"))
    if splits:
        return f"{folder} has no {INDEX_NAME}, but its folders have ({', '.join(splits)}); give one of those"
    tars = sorted(folder.glob("*.tar"))
    if tars:
        command = f"python -m datasets.index {folder}"
        return f"{folder} has {len(tars)} shards but no {INDEX_NAME}; make it with: {command}"
    return f"{folder} has no {INDEX_NAME} and no shards (*.tar); make some with: python -m datasets.prepare"


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
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"shard {path} is in the index but can't be opened: {error.strerror}") from error
    if found != shard.bytes:
        raise ShardError(
            f"shard {path} has {found} bytes, the index says {shard.bytes}: it was cut or changed. Bring it "
            f"back, or index the folder anew: python -m datasets.index {path.parent} --overwrite"
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


def label_ids(labels: Sequence[Label]) -> dict[int | str, int]:
    """Class id of everything that a sample may call a label by: its number, its name, its MID."""
    ids: dict[int | str, int] = {i: i for i in range(len(labels))}
    ids.update({label.mid: i for i, label in enumerate(labels) if label.mid})
    ids.update({label.name: i for i, label in enumerate(labels)})
    return ids


def _table_row(scan: ShardScan, sample: ScannedSample, ids: Mapping[int | str, int]) -> TableRow:
    unknown = [label for label in sample.labels if label not in ids]
    if unknown:
        raise ShardError(
            f"{scan.info.name}: label {unknown[0]!r} of sample {sample.key!r} is not in the vocabulary"
        )
    return TableRow(
        key=sample.key,
        # Keys of shards made elsewhere are often running numbers that begin anew in each shard.
        id=str(sample.metadata.get("id") or f"{scan.info.name.removesuffix('.tar')}/{sample.key}"),
        labels=sorted({ids[label] for label in sample.labels}),
        duration=_duration(sample),
        members=[(suffix, member.offset, member.size) for suffix, member in sample.members.items()],
        plain=all(member.plain for member in sample.members.values()),
    )


def _duration(sample: ScannedSample) -> float:
    value = sample.metadata.get("duration")
    return float(value) if isinstance(value, int | float) else 0.0


def index_folder(
    folder: Path | str, *, num_workers: int = 4, progress: Callable[[int], object] = lambda count: None
) -> ShardIndex:
    """Indexes shards made elsewhere: reads every ``*.tar`` once, writes ``index.json`` and the table.

    The vocabulary is what the samples hold: the sorted names, or, where all labels are numbers,
    ``0 ... max``.

    Args:
        folder: The folder of shards.
        num_workers: Shards read at a time.
        progress: Called with the number of samples after each shard.

    Raises:
        ShardError: The folder is missing or has no shards, or a shard can't be read; nothing is written then.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise ShardError(
            f"{folder} has no shards (*.tar) to index" if folder.is_dir() else _missing_index(folder)
        )
    counts: Counter[int | str] = Counter()
    numbers = _Numbering()  # labels by order of appearance, until all are known
    shards, duration = [], 0.0
    with TableBuilder(folder) as builder:
        for scan in _scan_all(paths, True, num_workers):
            if not any(_is_media(suffix) for sample in scan.samples for suffix in sample.members):
                raise ShardError(
                    f"{folder / scan.info.name} holds no sound, picture or video that can be read"
                )
            shards.append(scan.info)
            builder.add(scan.info.name, [_table_row(scan, sample, numbers) for sample in scan.samples])
            counts.update(label for sample in scan.samples for label in set(sample.labels))
            duration += sum(_duration(sample) for sample in scan.samples)
            progress(scan.info.samples)
        index = ShardIndex(tuple(shards), _vocabulary(counts), duration_seconds=duration)
        ids = label_ids(index.labels)
        builder.save(index.fingerprint, len(index.labels), [ids[label] for label in numbers])
    index.save(folder)
    return index


class _Numbering(dict[int | str, int]):
    """Gives every label that is asked for the next number."""

    def __contains__(self, label: object) -> bool:
        return True

    def __missing__(self, label: int | str) -> int:
        self[label] = len(self)
        return self[label]


def _is_media(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def _vocabulary(counts: Counter[int | str]) -> tuple[Label, ...]:
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
    return tuple(Label(str(i), count=counts[i]) for i in range(max(numbers, default=-1) + 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.index``."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.index", description="Index a folder of shards in place."
    )
    parser.add_argument("shards", type=Path, help="folder of WebDataset tars")
    parser.add_argument("--overwrite", action="store_true", help="forget an index.json that is there")
    parser.add_argument("--num_workers", type=int, default=4, help="shards read at a time")
    options = parser.parse_args(arguments)
    try:
        with tqdm(unit=" samples", desc="indexing") as bar:
            if (options.shards / INDEX_NAME).is_file() and not options.overwrite:
                index = ShardIndex.load(options.shards)
                table = build_table(
                    options.shards, index, hashing=True, num_workers=options.num_workers, progress=bar.update
                )
            else:
                index = index_folder(options.shards, num_workers=options.num_workers, progress=bar.update)
                table = ClipTable.open(options.shards, index.fingerprint)
    except ShardError as error:
        parser.exit(2, f"error: {error}\n")
    print(
        f"{options.shards}: {len(index.shards)} shards, {index.samples} samples, {index.bytes / 1e9:.2f} GB, "
        f"{len(index.labels)} classes; with sound {table.num_with_audio}, "
        f"with pictures {table.num_with_frames}"
    )


if __name__ == "__main__":
    main()
