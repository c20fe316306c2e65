"""The disk on which a plan is made: an SQLite database that lives as long as ``datasets.prepare`` plans.

Two million files and as many label rows would take gigabytes as Python objects. Here they are rows of tables;
matching is a look-up in an index, sorting is SQLite's, and memory is its page cache (``_CACHE_MB``) however many
there are.

It is private to one process and worth nothing after a crash, so it has no journal, is never flushed, and takes
no file locks (network file systems have trouble with those). Names of files may be no UTF-8: they are kept as bytes.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from datasets.prepare.labels import LabelRow
from datasets.prepare.sources import (
    DUPLICATE_ID,
    FILE_MISSING,
    PrepareError,
    Task,
    is_video,
    printable,
    rejected,
)
from datasets.shards.manifest import Reject

_CACHE_MB = 32
_SCHEMA = """
CREATE TABLE folders (depth INTEGER, name BLOB);
CREATE TABLE visited (device TEXT, inode TEXT, PRIMARY KEY (device, inode)) WITHOUT ROWID;
CREATE TABLE found (name BLOB);
CREATE TABLE others (suffix TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID;
CREATE TABLE files (number INTEGER PRIMARY KEY, name BLOB);
CREATE TABLE rows (number INTEGER PRIMARY KEY, name BLOB, start REAL, end REAL, labels TEXT, split TEXT,
    text TEXT);
CREATE TABLE matches (row INTEGER PRIMARY KEY, file BLOB, cut INTEGER);
CREATE TABLE missing (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE tasks (number INTEGER PRIMARY KEY, split TEXT, id TEXT UNIQUE, task TEXT);
CREATE TABLE clips (number INTEGER PRIMARY KEY, place INTEGER, id TEXT UNIQUE, task TEXT);
CREATE TABLE rejects (number INTEGER PRIMARY KEY, split TEXT, source TEXT, reason TEXT, detail TEXT);
"""


class Match(NamedTuple):
    """A label row that a file may belong to: its number, name (an id or a path), start and split."""

    number: int
    name: str
    start: float
    split: str | None


@contextmanager
def open_scratch(folder: Path) -> Iterator[Scratch]:
    """A new database in ``folder``, which is made, and removed with all that is in it at the end.

    Raises:
        PrepareError: The folder's name is no UTF-8, or its disk refuses.
        OSError: The disk is full.
    """
    folder.mkdir(parents=True)
    try:
        with closing(_connect(folder)) as connection:
            yield Scratch(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_IOERR:
            raise
        raise PrepareError(
            f"{folder} can't be written ({error}): is a quota used up, or does the disk fail?"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _connect(folder: Path) -> sqlite3.Connection:
    place = os.path.abspath(folder)
    if printable(place) != place:
        raise PrepareError(f"the name of the folder {os.fsencode(place)!r} is no UTF-8")
    uri = f"file:{quote(place)}/plan.sqlite?nolock=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    quoted = place.replace("'", "''")
    connection.executescript(f"""
        PRAGMA journal_mode = OFF;
        PRAGMA synchronous = OFF;
        PRAGMA locking_mode = EXCLUSIVE;
        PRAGMA cache_size = -{_CACHE_MB * 1000};
        PRAGMA temp_store = FILE;
        PRAGMA temp_store_directory = '{quoted}';
        BEGIN;
        {_SCHEMA}
    """)
    return connection


class Scratch:
    """What a plan is made of, on the disk: files, label rows, tasks, clips, rejects.

    Whatever is asked for comes in the order in which it was added, one by one. A split of None is that of a set
    without splits.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    # Files

    def find_files(self, root: Path) -> None:
        """Adds the videos below ``root``, sorted, by their paths relative to it. Links are followed once."""
        self._db.execute("INSERT INTO folders VALUES (0, ?)", (b"",))
        for depth in itertools.count():
            if not self._db.execute("SELECT 1 FROM folders WHERE depth = ?", (depth,)).fetchone():
                break
            folders = self._db.execute("SELECT name FROM folders WHERE depth = ? ORDER BY name", (depth,))
            for (name,) in folders:
                self._list_folder(root, os.fsdecode(name), depth)
        self._db.execute("INSERT INTO files (name) SELECT name FROM found ORDER BY name")

    def _list_folder(self, root: Path, folder: str, depth: int) -> None:
        """Takes in what lies in a folder, once."""
        path = os.path.join(root, folder)
        identity = os.stat(path)
        seen = self._db.execute(
            "INSERT OR IGNORE INTO visited VALUES (?, ?)", (str(identity.st_dev), str(identity.st_ino))
        )
        if not seen.rowcount:
            return
        try:
            entries = os.scandir(path)
        except PermissionError as error:
            print(f"{printable(path)} is left out: {error.strerror}", flush=True)
            return
        with entries:
            for entry in entries:
                name = os.fsencode(os.path.join(folder, entry.name))
                linked = entry.is_symlink()
                if os.path.isdir(entry) if linked else entry.is_dir():  # the latter need not ask the disk
                    if not entry.name.startswith("."):
                        self._db.execute("INSERT INTO folders VALUES (?, ?)", (depth + 1, name))
                # A link that leads nowhere is listed, to be rejected as file_missing; a FIFO or device is no video.
                elif is_video(entry.name) and (linked or entry.is_file()):
                    self._db.execute("INSERT INTO found VALUES (?)", (name,))
                elif not entry.name.startswith("."):
                    suffix = printable(os.path.splitext(entry.name)[1].lower())
                    self._db.execute(
                        "INSERT INTO others VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                        (suffix,),
                    )

    def others(self) -> dict[str, int]:
        """How many files of each other ending `find_files` saw, which are no videos; hidden ones not."""
        return dict(self._db.execute("SELECT suffix, count FROM others"))

    def add_files(self, names: Iterable[str]) -> None:
        """Adds files by their names."""
        self._db.executemany("INSERT INTO files (name) VALUES (?)", ((os.fsencode(name),) for name in names))

    def files(self, limit: int = -1) -> Iterator[str]:
        """Names of the files, or of the first few."""
        found = self._db.execute("SELECT name FROM files ORDER BY number LIMIT ?", (limit,))
        return (os.fsdecode(name) for (name,) in found)

    def unnamed_files(self) -> Iterator[str]:
        """Names of the files that are no row's name."""
        found = self._db.execute(
            "SELECT name FROM files WHERE NOT EXISTS (SELECT 1 FROM rows WHERE rows.name = files.name) "
            "ORDER BY number"
        )
        return (os.fsdecode(name) for (name,) in found)

    # Label rows

    def add_rows(self, rows: Iterable[LabelRow]) -> None:
        """Adds all rows of a label file."""
        self._db.executemany(
            "INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?)",
            (
                (os.fsencode(row.name), row.start, row.end, json.dumps(row.labels), row.split or "", row.text)
                for row in rows
            ),
        )
        self._db.execute("CREATE INDEX rows_by_name ON rows (name)")

    def splits(self) -> list[str | None]:
        """The splits of the rows, sorted; ``[None]`` where they have none."""
        found = self._db.execute("SELECT DISTINCT split FROM rows ORDER BY split")
        return [split or None for (split,) in found]

    def rows(self, limit: int = -1) -> Iterator[tuple[LabelRow, str | None, bool | None]]:
        """The rows, or the first few; with each the file that matches it, if any, and that file's ``cut``."""
        found = self._db.execute(
            "SELECT name, start, end, labels, split, text, file, cut FROM rows LEFT JOIN matches ON row = number "
            "ORDER BY number LIMIT ?",
            (limit,),
        )
        for name, start, end, labels, split, text, file, cut in found:
            row = LabelRow(os.fsdecode(name), start, end, tuple(json.loads(labels)), split or None, text)
            yield row, file and os.fsdecode(file), None if cut is None else bool(cut)

    def rows_named(self, names: Sequence[str]) -> list[Match]:
        """The rows of the longest of ``names`` that has any."""
        marks = ", ".join("?" * len(names))
        found = self._db.execute(
            f"SELECT number, name, start, split FROM rows WHERE name IN ({marks}) ORDER BY number",
            [os.fsencode(name) for name in names],
        ).fetchall()
        longest = max((len(name) for _, name, _, _ in found), default=0)
        return [
            Match(number, os.fsdecode(name), start, split or None)
            for number, name, start, split in found
            if len(name) == longest
        ]

    def match(self, row: int, file: str, cut: bool | None) -> str | None:
        """Gives a row its file; returns the file that it has already, if any."""
        values = (row, os.fsencode(file), cut)
        if self._db.execute("INSERT OR IGNORE INTO matches VALUES (?, ?, ?)", values).rowcount:
            return None
        (first,) = self._db.execute("SELECT file FROM matches WHERE row = ?", (row,)).fetchone()
        return os.fsdecode(first)

    # The plan

    def add_task(self, task: Task, split: str | None, spare_id: str | None = None) -> None:
        """Adds a task; a reject if there is one of its id, in whatever split.

        Args:
            task: The task.
            split: Its split.
            spare_id: The id that it gets instead where another file has its own.
        """
        if spare_id is not None:
            found = self._db.execute("SELECT task FROM tasks WHERE id = ?", (task.id,)).fetchone()
            if found is not None and Task.parse(found[0]).source != task.source:
                task = task._replace(id=spare_id)
        self._add("tasks", split or "", task, split)

    def tasks(self, split: str | None) -> Iterable[Task]:
        """The tasks of a split; may be iterated several times, also at once."""
        return _Tasks(self._db, "SELECT task FROM tasks WHERE split = ? ORDER BY number", (split or "",))

    def add_clip(self, clip: Task, place: int, split: str | None) -> None:
        """Adds a clip of the split that is being cut; a reject if there is one of its id."""
        self._add("clips", place, clip, split)

    def clips(self) -> Iterable[Task]:
        """The clips by their places."""
        return _Tasks(self._db, "SELECT task FROM clips ORDER BY place, number")

    def forget_clips(self) -> None:
        """Makes room for those of the next split."""
        self._db.execute("DELETE FROM clips")

    def _add(self, table: str, key: str | int, task: Task, split: str | None) -> None:
        values = (key, task.id, json.dumps(task))
        if self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES (NULL, ?, ?, ?)", values).rowcount:
            return
        (first,) = self._db.execute(f"SELECT task FROM {table} WHERE id = ?", (task.id,)).fetchone()
        detail = f"id {task.id} comes again, after {Task.parse(first).source}"
        self.reject(rejected(task.source, DUPLICATE_ID, detail), split)

    def reject_missing(self, identifier: str, split: str | None) -> None:
        """Adds a reject of a label row without a file: file_missing, or, after such a row, a duplicate."""
        new = self._db.execute("INSERT OR IGNORE INTO missing VALUES (?)", (printable(identifier),)).rowcount
        if new:
            self.reject(rejected(identifier, FILE_MISSING, "no file of this id"), split)
        else:
            self.reject(rejected(identifier, DUPLICATE_ID, f"a row of id {identifier} comes again"), split)

    def reject(self, reject: Reject, split: str | None) -> None:
        """Adds a reject."""
        values = (split or "", reject.source, reject.reason, reject.detail)
        self._db.execute("INSERT INTO rejects VALUES (NULL, ?, ?, ?, ?)", values)

    def rejects(self, split: str | None) -> Iterator[Reject]:
        """The rejects of a split."""
        query = "SELECT source, reason, detail FROM rejects WHERE split = ? ORDER BY number"
        return (Reject(*values) for values in self._db.execute(query, (split or "",)))


@dataclass(frozen=True)
class _Tasks(Iterable[Task]):
    """Tasks by a query, which is run again for each iteration."""

    db: sqlite3.Connection
    query: str
    values: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Task]:
        return (Task.parse(line) for (line,) in self.db.execute(self.query, self.values))
