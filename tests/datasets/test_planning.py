"""Plans are made on the disk: what they hold, what they leave behind, and that memory does not grow with them."""

from __future__ import annotations

import errno
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from support.labels import CLASSES, write

import datasets.prepare.plan_db
import datasets.shards.table_builder
from datasets.prepare.config import PrepareConfig
from datasets.prepare.labels import LabelFileError
from datasets.prepare.planning import make_plan
from datasets.prepare.resume import SplitJournal
from datasets.prepare.sources import PrepareError, Task
from datasets.shards.manifest import Reject
from datasets.shards.table_builder import TableBuilder, TableRow


def ten_seconds(tasks: Iterable[Task]) -> Iterator[float]:
    return (10.0 for _ in tasks)


def peak_bytes(function: Callable[[], object]) -> int:
    """Python's largest allocation while a function runs."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def configs(folder: Path, count: int) -> dict[str, PrepareConfig]:
    """A list of so many files, nearly all without labels, by id and by path; a tenth of them have no file."""
    folder.mkdir()
    names = [f"{i % 7}/video-{i:06d}.mp4" for i in range(count)]
    write(folder / "files.txt", "\n".join(names[count // 10 :]))
    write(folder / "class_labels_indices.csv", CLASSES)
    rows = [f'video-{i:06d}, 30.000, 40.000, "/m/068hy"\n' for i in range(count)]
    by_id = write(folder / "segments.csv", "".join(rows))
    by_path = write(
        folder / "paths.csv", "path,label\nhere.mp4,a\n" + "".join(f"{name},a\n" for name in names)
    )
    write(folder / "here.mp4", "")
    labels = {"none": None, "id": str(by_id), "path": str(by_path)}
    return {
        name: PrepareConfig(source=str(folder / "files.txt"), out=str(folder / name), labels=path)
        for name, path in labels.items()
    }


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path):
    few, many = configs(tmp_path / "few", 300), configs(tmp_path / "many", 4000)
    for name in few:
        make_plan(few[name], ten_seconds)  # imports, caches
        peaks = [
            peak_bytes(lambda config=config: make_plan(config, ten_seconds))
            for config in (few[name], many[name])
        ]
        assert SplitJournal(Path(many[name].out), None).num_tasks() >= 3600
        assert peaks[1] < peaks[0] + 300_000, (name, peaks)  # lists of 4000 took 1 MB, 3.4 with labels


def build_table(folder: Path, shards: int) -> bytes:
    folder.mkdir(exist_ok=True)
    with TableBuilder(folder) as builder:
        for shard in range(shards):
            rows = [
                TableRow(f"k{i}", f"clip {shard} {i}", [i % 3], 1.0, [("flac", 512 + 2048 * i, 1000)])
                for i in range(50)
            ]
            builder.add(f"{shard}.tar", rows)
        builder.save("f", 3, class_of=[1, 2, 0])
    return (folder / "index.table").read_bytes()


def test_memory_of_the_table_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = build_table(tmp_path / "whole", 3)
    monkeypatch.setattr(datasets.shards.table_builder, "_CHUNK", 64)
    assert build_table(tmp_path / "pieces", 3) == whole
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: b"")
        few, many = (peak_bytes(lambda n=n: build_table(tmp_path / str(n), n)) for n in (10, 200))
    assert many < few + 100_000, (few, many)  # the larger table has 300 kB


def test_order_depends_on_the_seed_alone(tmp_path: Path):
    source = tmp_path / "files.txt"
    source.write_text("".join(f"{i}.mp4\n" for i in range(50)))

    def plan(name: str, **settings) -> list[str]:
        out = tmp_path / name
        make_plan(PrepareConfig(source=str(source), out=str(out), **settings), ten_seconds)
        return [task.id for task in SplitJournal(out, None).tasks(0)]

    plain = plan("plain", shuffle=False)
    assert plain == [str(i) for i in range(50)]
    assert plan("first", seed=1) == plan("second", seed=1) != plan("third", seed=2) != plain
    assert sorted(plan("fourth")) == sorted(plain)


def test_other_files_of_a_folder_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a.mp4", "b.TXT", "c/d.txt", "c/noending", ".hidden.pdf", ".git/e.pdf"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "in" / name, "")
    make_plan(PrepareConfig(source=str(tmp_path / "in"), out=str(tmp_path / "out")), ten_seconds)
    said = capsys.readouterr().out
    assert said == f"{tmp_path / 'in'}; other files there: 2 .txt, 1 without an ending (not taken)\n"
    (tmp_path / "in" / "a.mp4").unlink()
    with pytest.raises(PrepareError, match=r"no video files .*; other files there: 2 \.txt"):
        make_plan(PrepareConfig(source=str(tmp_path / "in"), out=str(tmp_path / "new")), ten_seconds)


def test_pieces_that_rows_name_as_well_come_once(tmp_path: Path):
    write(tmp_path / "a.mp4", "")
    write(tmp_path / "set.csv", "path,start,end\na.mp4,,\na.mp4,10,20\n")
    config = PrepareConfig(source=str(tmp_path / "set.csv"), out=str(tmp_path / "out"), shuffle=False)
    make_plan(config, lambda tasks: (20.0 for _ in tasks))
    journal = SplitJournal(tmp_path / "out", None)
    assert [clip.id for clip in journal.tasks(0)] == ["a_0.000", "a_10.000"]
    assert [(reject.reason, reject.detail) for reject in journal.rejects()] == [
        ("duplicate_id", "id a_10.000 comes again, after a.mp4")
    ]


def test_a_plan_that_fails_leaves_nothing_and_one_that_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = configs(tmp_path / "in", 3000)["id"]
    out = Path(config.out)
    nested = PrepareConfig(
        source=config.source, out=str(out / "deep" / "er"), labels=str(tmp_path / "none.csv")
    )
    with pytest.raises(LabelFileError, match="no such label file"):
        make_plan(nested, ten_seconds)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(
            datasets.prepare.plan_db,
            "_SCHEMA",
            "PRAGMA max_page_count = 60;" + datasets.prepare.plan_db._SCHEMA,
        )
        with pytest.raises(OSError, match="No space left on device") as error:
            make_plan(config, ten_seconds)
    assert error.value.errno == errno.ENOSPC
    assert not out.exists()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(datasets.prepare.plan_db, "_CACHE_MB", 0)  # so that the disk is written to at once
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # refuses writes as a quota does
    try:
        with pytest.raises(PrepareError, match=r"can't be written \(disk I/O error\): is a quota used up"):
            make_plan(config, ten_seconds)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    (out / ".prepare" / "plan.scratch").mkdir(parents=True)
    (out / ".prepare" / "plan.scratch" / "plan.sqlite").write_text("half a database")
    make_plan(config, ten_seconds)
    assert sorted(path.name for path in (out / ".prepare").iterdir()) == ["job.json", "no.split"]
    with pytest.raises(PrepareError, match="is no UTF-8"):
        make_plan(
            PrepareConfig(source=config.source, out=os.fsdecode(os.fsencode(tmp_path) + b"/\xff")),
            ten_seconds,
        )


def test_rejects_count_once_progress_is_saved(tmp_path: Path):
    journal = SplitJournal(tmp_path, None)
    journal.create([Task("a.mp4", "a", (1, 2), 0.5)], [Reject("planned", "file_missing")])
    assert list(journal.tasks(0)) == [Task("a.mp4", "a", (1, 2), 0.5)]
    progress = journal.load()
    journal.add_rejects([Reject("a", "silent", "ü")])
    journal.save(progress)
    journal.add_rejects([Reject("lost", "silent")])
    assert journal.num_rejects() == 3
    journal.load()
    assert list(journal.rejects()) == [Reject("planned", "file_missing"), Reject("a", "silent", "ü")]
