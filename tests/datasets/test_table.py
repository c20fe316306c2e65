import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.shards import make_shards

from datasets.shards.manifest import ShardIndex
from datasets.shards.table import ClipTable, Column, Extent, write_table
from datasets.shards.table_builder import TableBuilder, TableRow
from datasets.shards.tar import ShardError


def row(key, *members, labels=()):
    return TableRow(key, f"id of {key}", list(labels), 1.5, list(members))


def test_table_finds_members_labels_and_ids(tmp_path):
    folder = make_shards(tmp_path, 10, 4, num_classes=3)
    index = ShardIndex.load(folder)
    table = ClipTable.open(folder, index.fingerprint)
    assert len(table) == 10
    assert table.shard_sizes == (4, 4, 2)
    assert [table.shard_of(r) for r in range(10)] == [0] * 4 + [1] * 4 + [2] * 2
    assert [table.id(r) for r in range(10)] == [f"clip-{r:05d}" for r in range(10)]
    assert [table.labels(r) for r in range(10)] == [(r % 3,) for r in range(10)]
    np.testing.assert_array_equal(table.durations, np.ones(10))
    assert table.slots == ["json", "flac", "00.jpg", "01.jpg"]
    assert (table.audio_slots, table.frame_slots, table.video_slots) == ([1], [2, 3], [])
    for r in range(10):
        shard = (folder / table.shards[table.shard_of(r)]).read_bytes()
        for slot, extent in table.members(r).items():
            name = f"clip-{r:05d}.{table.slots[slot]}".encode()
            assert shard[extent.offset :].startswith(name + b"\0")


def test_irregular_samples(tmp_path):
    first = [row("x", ("10.jpg", 1024, 5), ("2.jpg", 2048, 513), labels=[0, 2]), row("y", ("flac", 8192, 0))]
    with TableBuilder(tmp_path) as builder:
        builder.add("a", first)
        builder.add("b", [row("z", ("mp4", 512, 40_000_000), ("flac", 512 * 90_000, 1), labels=[1])])
        table = builder.save("f", 3)
    assert table.slots == ["10.jpg", "2.jpg", "flac", "mp4"]
    assert table.frame_slots == [1, 0]
    assert table.members(0) == {0: Extent(512, 1), 1: Extent(1536, 2)}
    assert table.members(1) == {2: Extent(7680, 0)}
    assert table.members(2) == {3: Extent(0, 78125), 2: Extent(512 * 89_999, 1)}
    assert [table.labels(r) for r in range(3)] == [(0, 2), (), (1,)]
    assert (table.num_with_audio, table.num_with_frames) == (2, 2)


def test_a_set_that_knows_no_times_of_frames_has_the_table_it_always_had(tmp_path):
    rows = [row("x", ("json", 512, 100), ("00.jpg", 1536, 700), labels=[0, 2]), row("y", ("json", 3584, 9))]
    with TableBuilder(tmp_path) as builder:
        builder.add("a", rows)
        assert builder.save("f", 3).frame_times(0) is None
    # Of the table that commit 49a4139 made of these rows.
    expected = "e3ab3a1958320e839643e102bc01c74fa5a415aca5e22d6ce8acefb5a2aac1d2"
    assert hashlib.sha256((tmp_path / "index.table").read_bytes()).hexdigest() == expected


def test_labels_are_renumbered_and_sorted(tmp_path):
    rows = [row("x", ("flac", 512, 1), labels=[0, 1, 2]), row("y", ("flac", 1536, 1), labels=[1])]
    with TableBuilder(tmp_path) as builder:
        builder.add("a", rows)
        table = builder.save("f", 3, class_of=[2, 0, 1])
    assert [table.labels(r) for r in range(2)] == [(0, 1, 2), (0,)]


def test_too_many_kinds_of_members(tmp_path):
    rows = [row(f"k{i}", (f"{i}.extra.flac", 512, 1)) for i in range(600)]
    with (
        TableBuilder(tmp_path) as builder,
        pytest.raises(ShardError, match="more than 512 different member names"),
    ):
        builder.add("a", rows)


def test_pickle_maps_the_file_again(tmp_path):
    table = ClipTable.open(make_shards(tmp_path, 6, 3))
    data = pickle.dumps(table)
    assert len(data) < 1000
    assert pickle.loads(data).members(5) == table.members(5)


def test_stale_missing_and_broken_tables_are_refused(tmp_path):
    folder = make_shards(tmp_path, 6, 3)
    path = folder / "index.table"
    with pytest.raises(
        ShardError, match=r"another state of index.json; rebuild it with: python -m datasets.index"
    ):
        ClipTable.open(folder, "0123")
    whole = path.read_bytes()
    for broken, message in (
        (whole[:-64], "is cut off"),
        (whole[:30], "is cut off"),
        (b"x" * 99, "is no table"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ShardError, match=message):
            ClipTable.open(folder)
    path.unlink()
    with pytest.raises(ShardError, match=r"is not there; make it with: python -m datasets.index"):
        ClipTable.open(folder)


OPEN = """
import sys, time
from pathlib import Path
from datasets.shards.table import ClipTable
def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before, begin = rss(), time.perf_counter()
table = ClipTable.open(sys.argv[1], "f")
seconds = time.perf_counter() - begin
for row in range(0, len(table), 997):
    assert len(table.members(row)) == 12 and len(table.id(row)) == 11 and len(table.labels(row)) == 2
assert int(table.durations.sum()) == 10 * len(table)  # all rows: every page of a column
print(seconds, rss() - before, len(table))
"""


def test_two_million_clips_open_at_once_in_little_memory(tmp_path):
    count, shards = 2_000_000, 2000
    slots = ["json", "flac", *(f"{i:02d}.jpg" for i in range(10))]
    rng = np.random.default_rng(0)
    blocks = rng.integers(30, 900, (count, len(slots)), np.uint16)
    taken = (blocks.sum(1, dtype=np.int64) + len(slots)).reshape(shards, -1)
    columns = {
        "starts": (taken.cumsum(1) - taken).reshape(-1).astype(np.uint32),
        "blocks": blocks,
        "key_checksums": rng.integers(0, 2**32, count, np.uint32),
        "durations": np.full(count, 10.0, np.float32),
        "id_offsets": np.arange(0, 11 * count + 1, 11, dtype=np.uint32),
        "id_bytes": np.full(11 * count, ord("-"), np.uint8),
        "label_offsets": np.arange(0, 2 * count + 1, 2, dtype=np.uint32),
        "label_ids": rng.integers(0, 527, 2 * count, np.uint16),
        "first_rows": np.arange(0, count + 1, count // shards),
    }
    write_table(
        tmp_path / "index.table",
        {name: Column.of(values) for name, values in columns.items()},
        {"fingerprint": "f", "shards": ["s"] * shards, "num_classes": 527, "plain": True, "slots": slots},
    )
    assert (tmp_path / "index.table").stat().st_size < 200e6
    run = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    seconds, resident, rows = run.stdout.split()
    assert int(rows) == count
    assert float(seconds) < 2
    assert int(resident) < 200e6
    print(f"{rows} clips: {float(seconds) * 1000:.1f} ms to open, {int(resident) / 1e6:.0f} MB resident")
