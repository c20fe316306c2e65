"""Where the shards of a set are: in a folder, or at URLs and then in a bounded local cache.

`datasets.shards.fetch` fetches: ``https:``, ``s3:``, ``gs:``, ``hf:``, ``sftp:``, ... and ``pipe:COMMAND``, which reads
the standard output of any command. A set's location is a folder or URL to which a file's name is added, or holds
``{}`` in its place: ``pipe:ssh host cat /data/audioset/{}``.

Decisions:
    * The index names files of the set and nothing else: no path, no URL, no command (`datasets.shards.names`).
    * A shard is fetched whole, once a machine: a file lock keeps other processes waiting for it. It gets its
      name only after its size was compared with the index.
    * Before a fetch the shards that nobody opened for the longest time go, until the new one fits. Only files that
      the cache made itself are counted and removed, whatever else lies in its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from atomic import replacing
from datasets.index import check_size
from datasets.shards.fetch import fetch
from datasets.shards.manifest import INDEX_NAME, LARGEST_INDEX, ShardIndex
from datasets.shards.names import check_location, is_pipe, is_url, join, public
from datasets.shards.table import TABLE_NAME, ClipTable
from datasets.shards.tar import ShardError, ShardInfo

_LOCKS = ".locks"
_TABLES = "tables"
_OWN = re.compile(r"([0-9a-f]{16})-.+")
_LARGEST_ROW = 8192  # bytes that a clip may take in a table that is fetched


class ShardStore:
    """Gives the local file of a shard, fetching it where it is not local.

    Args:
        location: Folder or URL of the set; see the module.
        cache_dir: Folder for fetched shards; needed for URLs.
        cache_bytes: Upper bound of what is kept there.
        retry_delays: Seconds to wait before each further attempt at a fetch that failed.

    Raises:
        ValueError: Shards are at URLs, and there is no ``cache_dir``.
    """

    def __init__(
        self,
        location: str | Path,
        cache_dir: Path | str | None = None,
        cache_bytes: int = 50_000_000_000,
        retry_delays: tuple[float, ...] = (1.0, 5.0),
    ) -> None:
        self.location = str(location)
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.cache_bytes = cache_bytes
        self.retry_delays = retry_delays
        check_location(self.location)
        self.is_remote = is_url(self.location)
        if self.is_remote:
            self._cache()

    def url(self, name: str) -> str:
        """URL or path of the file ``name`` of the set.

        Raises:
            ShardError: It is no plain file name.
        """
        try:
            return join(self.location, name)
        except ValueError as error:
            raise ShardError(f"{public(self.location)}: {error}") from error

    def open_index(self) -> tuple[ShardIndex, ClipTable]:
        """The set's index and table.

        Raises:
            ShardError: One is missing, can't be read, or the table belongs to another index.
        """
        if not self.is_remote:
            folder = Path(self.url(INDEX_NAME)).parent
            index = ShardIndex.load(folder)
            return index, ClipTable.of(index, folder)
        url = self.url(INDEX_NAME)
        folder = self._cache() / _TABLES
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock(
            url
        ):  # the index is small and fetched each time, the table kept for as long as it fits
            copy = folder / _cache_name(url, INDEX_NAME)
            self._fetch(INDEX_NAME, copy, largest=LARGEST_INDEX)
            index = ShardIndex.load_file(copy, public(url))
            table = folder / f"{index.fingerprint}.table"
            if not table.exists():
                largest = min(self.cache_bytes, LARGEST_INDEX + _LARGEST_ROW * index.samples)
                self._fetch(TABLE_NAME, table, largest=largest)
            try:
                return index, ClipTable.of(index, table)
            except ShardError as error:
                table.unlink()  # else it would be here still when the set is mended
                raise ShardError(
                    f"{public(self.url(TABLE_NAME))} is not the table of that set's index; rebuild it where the set "
                    f"is made: python -m datasets.index FOLDER --overwrite"
                ) from error

    def check(self, shards: tuple[ShardInfo, ...]) -> None:
        """Checks that every shard that is local is there and has its size.

        Raises:
            ShardError: Names the first that differs, with both sizes.
        """
        if not self.is_remote:
            for shard in shards:
                check_size(Path(self.url(shard.name)), shard)

    def path(self, shard: ShardInfo) -> Path:
        """Local file of a shard.

        Raises:
            ShardError: It can't be fetched, or what came has another size than the index says.
        """
        url = self.url(shard.name)
        if not self.is_remote:
            return Path(url)
        path = self._cache() / _cache_name(url, shard.name)
        with self._lock(url):
            if not path.exists():
                self._fetch(shard.name, path, expected=shard.bytes)
            os.utime(path)  # so that the cache knows when it was last in use
        return path

    def _cache(self) -> Path:
        if self.cache_dir is None:
            raise ValueError(
                f"{public(self.location)} has shards at URLs: set cache_dir, a folder to keep them in"
            )
        return self.cache_dir

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process at a time (and one at a time of those that the file system is shared with)."""
        folder = self._cache() / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _digest(name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, needed: int) -> None:
        """Removes the shards that were not in use for the longest time until ``needed`` bytes fit."""
        if needed > self.cache_bytes:
            raise ShardError(
                f"a shard of {needed} bytes does not fit the cache of {self.cache_bytes} bytes (cache_gb)"
            )
        files = []
        for path in self._cache().iterdir():
            if self._is_own(path.name):
                with contextlib.suppress(FileNotFoundError):  # another process renames what it fetched
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((status.st_mtime_ns, status.st_size, path))
        taken = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if taken + needed <= self.cache_bytes:
                return
            path.unlink(missing_ok=True)  # processes that have it open go on reading it
            taken -= size

    def _is_own(self, name: str) -> bool:
        """Whether the cache made the file of this name: then there is a lock of the URL that it came from."""
        match = _OWN.fullmatch(name)
        return match is not None and (self._cache() / _LOCKS / match[1]).exists()

    def _fetch(self, name: str, path: Path, *, expected: int | None = None, largest: int = 0) -> None:
        url = self.url(name)
        for delay in self.retry_delays:
            try:
                return self._download(url, path, expected, largest)
            except ShardError:
                time.sleep(delay)
        try:
            self._download(url, path, expected, largest)
        except ShardError as error:
            if not is_pipe(url):
                raise
            # Nothing of a command is shown, so the error does not yet say which file it is about.
            raise ShardError(f"{name}: {error}") from error

    def _download(self, url: str, path: Path, expected: int | None, largest: int) -> None:
        try:
            with replacing(path) as file:
                if expected is not None:
                    with self._lock("eviction"):
                        self._make_room(expected)
                        file.truncate(expected)  # counts in the cache before its bytes are there
                fetch(url, file, expected, largest)
        except OSError as error:
            raise ShardError(f"{public(url)} can't be kept in {self.cache_dir}: {error}") from error


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _cache_name(url: str, name: str) -> str:
    """Of the URL nothing else: it may hold a signature."""
    return f"{_digest(url)}-{name[-64:]}"
