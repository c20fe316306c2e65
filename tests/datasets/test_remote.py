import multiprocessing
import os
from pathlib import Path

import pytest
from support.shards import make_shards

from datasets.batch import Clip, Ticket
from datasets.loading.reader import ClipReader
from datasets.shards.manifest import ShardIndex
from datasets.shards.names import is_url
from datasets.shards.store import ShardStore
from datasets.shards.tar import ShardError


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_shards(tmp_path / "far", 12, 2)


def counted(folder: Path, log: Path) -> str:
    """A pipe that notes each fetch."""
    return f"pipe:echo {{}} >> {log}; cat {folder}/{{}}"


def cached(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_file()]


def test_what_is_a_url():
    assert all(map(is_url, ["pipe:cat x", "s3://b/x", "https://h/x", "gs://b/x"]))
    assert not any(map(is_url, ["/data/x", "data", "file:///data/x"]))


def test_urls_of_files():
    assert ShardStore("https://host/set/", "cache").url("a.tar") == "https://host/set/a.tar"
    assert ShardStore("pipe:ssh host cat /d/{}", "cache").url("a.tar") == "pipe:ssh host cat /d/a.tar"
    assert ShardStore("/data").url("a.tar") == ShardStore("file:///data").url("a.tar") == "/data/a.tar"
    with pytest.raises(ValueError, match=r"https://host/set has shards at URLs: set cache_dir"):
        ShardStore("https://host/set")


def test_a_set_is_read_through_a_pipe(folder, tmp_path):
    log, cache = tmp_path / "log", tmp_path / "cache"
    store = ShardStore(counted(folder, log), cache)
    near, far = ClipReader(folder, image_size=16), ClipReader(store, image_size=16)
    for row in range(12):
        one, other = near.read(Ticket(row, row)), far.read(Ticket(row, row))
        assert isinstance(one, Clip)
        assert isinstance(other, Clip)
        assert one.id == other.id
        assert one.frames is not None
        assert other.frames is not None
        assert one.frames.equal(other.frames)
    ClipReader(store, image_size=16).read(Ticket(0, 0))
    fetched = log.read_text().split()
    assert sorted(fetched) == sorted(
        [*(shard.name for shard in far.index.shards), "index.table", "index.json", "index.json"]
    )  # each shard and the table once; the index each time


def test_the_cache_stays_within_its_bound(folder, tmp_path):
    shards = ShardIndex.load(folder).shards
    log, cache = tmp_path / "log", tmp_path / "cache"
    bound = 3 * max(shard.bytes for shard in shards)
    store = ShardStore(counted(folder, log), cache, bound)
    for number in (0, 1, 2, 0, 3, 0, 4, 0, 5, 0):  # 0 is in use all the time, and stays
        path = store.path(shards[number])
        assert path.read_bytes() == (folder / shards[number].name).read_bytes()
        assert sum(path.stat().st_size for path in cached(cache)) <= bound
        now = path.stat().st_mtime_ns
        os.utime(path, ns=(now + number, now + number))  # the clock of a file system may be coarse
    assert log.read_text().split() == [shards[i].name for i in range(6)]


def test_a_shard_that_can_not_fit_is_refused(folder, tmp_path):
    store = ShardStore(f"pipe:cat {folder}/{{}}", tmp_path / "cache", cache_bytes=100)
    with pytest.raises(ShardError, match=r"does not fit the cache of 100 bytes"):
        store.path(ShardIndex.load(folder).shards[0])


@pytest.mark.parametrize("command", ["pipe:false {}", "pipe:head -c 1000 {folder}/{{}}", "pipe:true {}"])
def test_failed_and_short_fetches_are_errors_and_leave_nothing(folder, tmp_path, command):
    location = command.format(folder=folder) if "folder" in command else command
    store = ShardStore(location, tmp_path / "cache", retry_delays=(0.0,))
    with pytest.raises(
        ShardError, match=r"shard-000000.tar: pipe:… (can't be fetched|gave \d+ bytes, the index says)"
    ):
        store.path(ShardIndex.load(folder).shards[0])
    assert not cached(tmp_path / "cache")


def test_a_fetch_that_fails_once_is_repeated(folder, tmp_path):
    flag = tmp_path / "flag"
    command = f"pipe:test -e {flag} || (touch {flag}; false) && cat {folder}/{{}}"
    shard = ShardIndex.load(folder).shards[0]
    store = ShardStore(command, tmp_path / "cache", retry_delays=(0.0,))
    assert store.path(shard).stat().st_size == shard.bytes


def fetch_all(store: ShardStore, folder: Path) -> None:
    for shard in ShardIndex.load(folder).shards:
        assert store.path(shard).stat().st_size == shard.bytes


def test_processes_share_what_one_of_them_fetches(folder, tmp_path):
    log = tmp_path / "log"
    store = ShardStore(f"pipe:echo {{}} >> {log}; sleep 0.1; cat {folder}/{{}}", tmp_path / "cache")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch_all, args=(store, folder)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(log.read_text().split()) == [shard.name for shard in ShardIndex.load(folder).shards]
