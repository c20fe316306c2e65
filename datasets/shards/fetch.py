"""Fetches a file from a URL or a command, within a size and a time.

``http:``, ``https:``, ``ftps:``, ``sftp:`` and ``scp:`` go through curl, ``s3:`` through ``aws s3 cp``, ``pipe:``
through a shell, all others (``gs:``, ``hf:``, ``ais:``) through WebDataset's openers. No server decides how long a
fetch takes or how much comes: what is slow, endless or larger than it may be is ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Timer
from typing import BinaryIO, Protocol, cast
from urllib.parse import urlparse

from webdataset.gopen import Pipe, gopen

from datasets.shards.names import is_pipe, pipe_command, public
from datasets.shards.tar import ShardError

_CURL_SCHEMES = ("http", "https", "ftps", "sftp", "scp")
_PATIENCE = 600.0  # seconds beside those that the size takes: until the first bytes come, and the last are on the disk
_SLOWEST = 100_000  # bytes a second on average, below which a fetch has failed
_PIECE = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def fetch(url: str, file: BinaryIO, expected: int | None, largest: int) -> None:
    """Fetches a file.

    Args:
        url: What to fetch; ``pipe:COMMAND`` is the command's output.
        file: Takes its bytes.
        expected: Its size in bytes, if known.
        largest: The most that is taken, where it is not.

    Raises:
        ShardError: It can't be fetched, has another size, or takes too long.
    """
    most = largest if expected is None else expected
    try:
        with _opened(url, most, _PATIENCE + most / _SLOWEST) as stream:
            found = 0
            while found <= most and (piece := stream.read(_PIECE)):
                found += len(piece)
                file.write(piece)
            if found > most:
                raise ShardError(f"{public(url)} gives more than the {most} bytes that it may have")
    except (OSError, subprocess.SubprocessError) as error:
        raise ShardError(f"{public(url)} can't be fetched: {error}") from error
    if not found or (expected is not None and found != expected):
        raise ShardError(f"{public(url)} gave {found} bytes, the index says {expected or 'more'}")


@contextmanager
def _opened(url: str, most: int, seconds: float) -> Iterator[_Readable]:
    """The file's bytes; at the end of the block whoever gave them must have ended well.

    Raises:
        OSError: It did not.
    """
    scheme = urlparse(url).scheme
    if is_pipe(url) or scheme in (*_CURL_SCHEMES, "s3"):
        with _process(_command(url, scheme, most), seconds, quiet=not is_pipe(url)) as stream:
            yield stream
        return
    with cast(Pipe, gopen(url, "rb")) as stream:
        timer = Timer(seconds, stream.proc.kill)
        timer.start()
        try:
            yield stream
        finally:
            timer.cancel()


def _command(url: str, scheme: str, most: int) -> list[str]:
    if is_pipe(url):
        return ["/bin/sh", "-c", pipe_command(url)]
    if scheme == "s3":
        return ["aws", "s3", "cp", "--only-show-errors", url, "-"]
    # No globs; no other scheme, also where the server sends us on; and no more than ``most`` where a size is declared.
    onward = "=http,https" if scheme == "http" else "=https"
    return [
        "curl", "-f", "-sS", "-L", "--globoff", "--proto", f"={scheme}", "--proto-redir", onward, "--max-redirs", "5",
        "--connect-timeout", "30", "--speed-limit", "1000", "--speed-time", "30", "--max-filesize", str(most),
        "--", url,
    ]  # fmt: skip


@contextmanager
def _process(command: list[str], seconds: float, *, quiet: bool) -> Iterator[_Readable]:
    """What a program writes; after ``seconds``, or where the block fails, it is ended with its children."""
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints if quiet else None,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        timer = Timer(seconds, _end, [process])
        timer.start()
        try:
            yield process.stdout
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
        if process.returncode == -signal.SIGKILL:
            raise OSError(f"it was ended, at the latest after {seconds:.0f} s")
        if process.returncode:
            complaints.seek(0)
            said = complaints.read(2000).decode("utf-8", "replace").strip().splitlines()
            raise OSError(f"status {process.returncode}" + (f", {said[-1]}" if said else ""))


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
