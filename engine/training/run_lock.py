"""One run to a folder: a live run's folder is refused, a dead one's is taken over.

``OUTPUT_DIR/run.lock`` says which process holds the folder: host, boot, process id, when that process started, and a
beat that it changes while it lives. Nobody ever has to remove it:

* On the same machine the process table tells whether its process still lives (a process id that was given to another
  process started at another time).
* On another machine (a node may be lost, and an NFS knows nothing of processes) the beat tells: if it has not changed
  for ``PATIENCE_SECONDS`` by this machine's own clock, its process is gone.

Only rank 0 holds the lock. It is taken by a hard link, which is atomic on NFS too; on a file system without hard links
(exFAT, SMB, some that are mounted by FUSE) by a file that must be new.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from atomic import write_atomically
from datasets.untrusted import parse_json, read_bounded
from engine.parallel.world import World
from engine.records.runlog import logger

LOCK_NAME = "run.lock"
BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 40.0
_LARGEST = 10_000  # bytes


class RunInUseError(ValueError):
    """Another process is running in this folder; the message names it."""


@dataclass(frozen=True)
class Holder:
    """What a lock says of the process that holds the folder.

    Attributes:
        host: Its machine's name.
        machine: That machine's boot and process table, by which its process ids mean something.
        pid: Its process id.
        started: When the kernel says it started, in ticks after the boot.
        token: Of this lock alone.
        beat: Changes while it lives.
    """

    host: str
    machine: str
    pid: int
    started: int
    token: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        """The holder that this process is."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _start_of(pid) or 0, uuid.uuid4().hex)

    def lives_here(self) -> bool | None:
        """Whether its process lives; None where this machine can't know."""
        if not self.machine or self.machine != _machine():
            return None
        return _start_of(self.pid) == self.started


@contextmanager
def hold_run(run: Path, world: World) -> Iterator[None]:
    """Holds a run's folder for the time of the ``with`` block; every rank calls it.

    Raises:
        RunInUseError: Another process is running in it.
    """
    lock, message = None, None
    if world.is_main:
        try:
            lock = RunLock(run)
        except (RunInUseError, OSError) as error:
            message = str(error)
    message = world.from_main(lambda: message)
    if message is not None:
        raise RunInUseError(message)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def is_held_by_another(run: Path) -> bool:
    """Whether another process holds a folder, as far as this machine can know without waiting."""
    try:
        holder = Holder(**parse_json(read_bounded(run / LOCK_NAME, _LARGEST)))
    except (OSError, ValueError, TypeError):
        return False
    return holder.pid != os.getpid() and holder.lives_here() is not False


class RunLock:
    """A folder held by this process, until it is released or the process ends.

    Args:
        run: The run's folder; made if it is missing.

    Raises:
        RunInUseError: Another process holds it.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / LOCK_NAME
        self._made = [folder for folder in (run, *run.parents) if not folder.exists()]
        run.mkdir(parents=True, exist_ok=True)
        self._holder = Holder.this_process()
        self._take()
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="run.lock", daemon=True).start()

    def _take(self) -> None:
        own = self._path.with_name(f".{LOCK_NAME}.{self._holder.token}")
        write_atomically(own, json.dumps(asdict(self._holder)))
        try:
            while True:
                with suppress(FileExistsError):
                    _name(own, self._path)
                    return
                holder = _read(self._path)
                if holder is None:  # without hard links another process may be writing it just now
                    time.sleep(0.2)
                    holder = _read(self._path)
                if holder is not None and _is_alive(self._path, holder):
                    raise RunInUseError(
                        f"{self._path.parent} is in use by process {holder.pid} on {holder.host}: one run to a "
                        "folder. Give this one another output_dir, or stop the other first"
                    )
                self._remove_dead(holder)
        finally:
            own.unlink(missing_ok=True)

    def _remove_dead(self, holder: Holder | None) -> None:
        """Removes a dead process's lock, unless another process has taken it over in the meantime."""
        aside = self._path.with_name(f".{LOCK_NAME}.dead.{self._holder.token}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        found = _read(aside)
        if found is not None and (holder is None or found.token != holder.token):
            with suppress(FileExistsError):
                _name(aside, self._path)
        elif found is not None:
            logger.warning(
                "%s: taken over from process %d on %s, which is gone",
                self._path.parent,
                found.pid,
                found.host,
            )
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            found = _read(self._path)
            if found is None or found.token != self._holder.token:
                logger.error(
                    "%s was taken over by another process while this one stood still", self._path.parent
                )
                return
            self._holder = replace(self._holder, beat=self._holder.beat + 1)
            with suppress(OSError):  # a disk that is full or away for a while
                write_atomically(self._path, json.dumps(asdict(self._holder)))

    def release(self) -> None:
        """Gives the folder free, and removes it if nothing was written into it."""
        self._released.set()
        found = _read(self._path)
        if found is not None and found.token == self._holder.token:
            self._path.unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def _name(file: Path, name: Path) -> None:
    """Gives a file a second name.

    Raises:
        FileExistsError: There is one of that name.
    """
    try:
        os.link(file, name)
    except OSError as error:
        # FileExistsError first: it is what a file system with hard links says of a name that is taken.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK):
            raise
        with open(name, "xb") as copy:
            copy.write(file.read_bytes())


def _is_alive(path: Path, holder: Holder) -> bool:
    """Whether a lock's process lives, as far as can be told; looks at its beat where it runs elsewhere."""
    lives = holder.lives_here()
    if lives is not None:
        return lives
    logger.warning(
        "%s was last used on %s; waiting up to %.0f s for a sign of life",
        path.parent,
        holder.host,
        PATIENCE_SECONDS,
    )
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE_SECONDS / 10))
        found = _read(path)
        if found != holder:
            return found is not None
    return False


def _read(path: Path) -> Holder | None:
    """What a lock says; None where there is none, or none that means anything."""
    try:
        return Holder(**parse_json(read_bounded(path, _LARGEST)))
    except (OSError, ValueError, TypeError):
        return None


def _machine() -> str:
    """Boot and process table of this machine: containers on one host have process ids of their own."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks after the boot; None where there is no such process, or it is dead."""
    try:
        # After the name in brackets, which may hold anything: state is the first field, the start the twentieth.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
