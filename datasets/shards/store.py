"""Where the shards of a set are: in a folder, or at URLs and then in a bounded local cache.

WebDataset's openers fetch: ``https:``, ``gs:``, ``hf:``, ``sftp:``, ... and ``pipe:COMMAND``, which reads
the standard output of any command; ``s3:`` goes through ``aws s3 cp``. A set's location is a folder or URL
to which a file's name is added, or holds ``{}`` in its place: ``pipe:ssh host cat /data/audioset/{}``.

Decisions:
    * A shard is fetched whole, once a machine: a file lock keeps other processes waiting for it. It gets its
      name only after its size was compared with the index.
    * Before a fetch the shards that nobody opened for the longest time go, until the new one fits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from subprocess import TimeoutExpired
from urllib.parse import urlparse
from urllib.request import url2pathname

from webdataset.gopen import gopen, gopen_schemes

from datasets.atomic import TEMPORARY_SUFFIX
from datasets.index import check_size
from datasets.shards.manifest import INDEX_NAME, ShardIndex
from datasets.shards.table import TABLE_NAME, ClipTable
from datasets.shards.tar import ShardError, ShardInfo

_LOCKS = ".locks"
_TABLES = "tables"


def is_url(location: str) -> bool:
    """Whether ``location`` is fetched, in place of being opened where it is."""
    return location.startswith("pipe:") or urlparse(location).scheme not in ("", "file")


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
        if is_url(self.location):
            self._cache()

    def url(self, name: str) -> str:
        """URL or path of the file ``name`` of the set; a name that is a URL itself stays."""
        if is_url(name):
            return name
        if is_url(self.location):
            if "{}" in self.location:
                return self.location.replace("{}", name)
            return f"{self.location.rstrip('/')}/{name}"
        parsed = urlparse(self.location)
        folder = url2pathname(parsed.path) if parsed.scheme == "file" else self.location
        return str(Path(folder) / name)

    def open_index(self) -> tuple[ShardIndex, ClipTable]:
        """The set's index and table.

        Raises:
            ShardError: One is missing, can't be read, or the table belongs to another index.
        """
        if not is_url(self.location):
            folder = Path(self.url("."))
            index = ShardIndex.load(folder)
            return index, ClipTable.open(folder, index.fingerprint)
        url = self.url(INDEX_NAME)
        folder = self._cache() / _TABLES
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock(url):  # the index is small and fetched anew, the table kept for as long as it fits
            copy = folder / _cache_name(url)
            self._fetch(url, copy, None)
            index = ShardIndex.load_file(copy, url)
            table = folder / f"{index.fingerprint}.table"
            if not table.exists():
                self._fetch(self.url(TABLE_NAME), table, None)
        return index, ClipTable.open(table, index.fingerprint)

    def check(self, shards: tuple[ShardInfo, ...]) -> None:
        """Checks that every shard that is local is there and has its size.

        Raises:
            ShardError: Names the first that differs, with both sizes.
        """
        for shard in shards:
            path = self.url(shard.name)
            if not is_url(path):
                check_size(Path(path), shard)

    def path(self, shard: ShardInfo) -> Path:
        """Local file of a shard.

        Raises:
            ShardError: It can't be fetched, or what came has another size than the index says.
        """
        url = self.url(shard.name)
        if not is_url(url):
            return Path(url)
        path = self._cache() / _cache_name(url)
        with self._lock(url):
            if not path.exists():
                with self._lock("eviction"):
                    self._make_room(shard.bytes)
                    _reserve(path, shard.bytes)
                self._fetch(url, path, shard.bytes)
            os.utime(path)  # so that the cache knows when it was last in use
        return path

    def _cache(self) -> Path:
        if self.cache_dir is None:
            raise ValueError(f"{self.location} has shards at URLs: set cache_dir, a folder to keep them in")
        return self.cache_dir

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process at a time (and one at a time of those that the file system is shared with)."""
        folder = self._cache() / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / hashlib.sha256(name.encode()).hexdigest()[:16], "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, needed: int) -> None:
        """Removes the shards that were not in use for the longest time until ``needed`` bytes fit."""
        if needed > self.cache_bytes:
            raise ShardError(
                f"a shard of {needed} bytes does not fit the cache of {self.cache_bytes} bytes (cache_gb)"
            )
        files = []
        for path in self._cache().iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process renames what it fetched
                if path.is_file():
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        taken = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if taken + needed <= self.cache_bytes:
                return
            path.unlink(missing_ok=True)  # processes that have it open go on reading it
            taken -= size

    def _fetch(self, url: str, path: Path, expected: int | None) -> None:
        for delay in self.retry_delays:
            try:
                return _download(url, path, expected)
            except ShardError:
                time.sleep(delay)
        _download(url, path, expected)


def _cache_name(url: str) -> str:
    stem = PurePosixPath(urlparse(url).path.rpartition(" ")[2]).name or "shard"
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{stem[-64:]}"


def _openable(url: str) -> str:
    """WebDataset has no opener for S3 of its own."""
    if url.startswith("s3:") and "s3" not in gopen_schemes:
        return f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
    return url


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def _reserve(path: Path, size: int) -> None:
    """Makes the file to be fetched count in the cache before its bytes are there."""
    with open(_temporary(path), "wb") as file:
        file.truncate(size)


def _download(url: str, path: Path, expected: int | None) -> None:
    temporary = _temporary(path)
    try:
        with (
            gopen(_openable(url), "rb") as stream,
            open(temporary, "r+b" if temporary.exists() else "wb") as file,
        ):
            shutil.copyfileobj(stream, file, 1 << 20)
            found = file.tell()
        if not found or (expected is not None and found != expected):
            raise ShardError(f"{url} gave {found} bytes, the index says {expected or 'more'}")
        os.replace(temporary, path)
    except (OSError, TimeoutExpired) as error:
        raise ShardError(f"{url} can't be fetched: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
