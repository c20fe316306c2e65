"""Sets that others made: what their index, table and shards say is data, and never a path, an address or a command."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.shards import make_shards

from datasets.batch import Clip, ReadFailure, Ticket
from datasets.check import main as check
from datasets.decode import DecodeError
from datasets.index import index_folder
from datasets.inspect.stored_clips import read_clip
from datasets.loading.reader import ClipReader
from datasets.shards.manifest import ShardIndex
from datasets.shards.store import ShardStore
from datasets.shards.tar import ShardError, ShardInfo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "set", 4, 2)


def edit(folder: Path, change: Any) -> None:
    """Passes the index's JSON through ``change``."""
    path = folder / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """Serves requests with a handler class; returns the URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


NAMES = [
    "pipe:touch {marker}",
    " PIPE:touch {marker}",
    "shard-000000.tar;touch {marker};true",
    "$(touch {marker}).tar",
    "`touch {marker}`.tar",
    "a\ntouch {marker}.tar",
    "a'$(touch {marker})'.tar",
    "{marker}/../../../etc/passwd",
    "../set/shard-000000.tar",
    "..",
    "",
    ".hidden.tar",
    "-rf",
    "/etc/passwd",
    "http://127.0.0.1:9/internal",
    "file:///etc/passwd",
    "shard-{{0..9}}.tar",
    "shard-[1-9].tar",
    "a%2e%2e%2fb.tar",
    "a?b.tar",
    "a#b.tar",
    "x" * 300,
    "\ud800.tar",
    7,
    None,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_shards_name_is_the_name_of_a_file_in_the_set(folder: Path, tmp_path: Path, name: Any) -> None:
    marker = tmp_path / "marker"
    name = name.format(marker=marker) if isinstance(name, str) else name
    edit(folder, lambda content: content["shards"][1].update(name=name))
    for location in (str(folder), f"pipe:cat {folder}/{{}}"):
        with pytest.raises(ShardError, match=r"shards\[1\].name is .*: it must be the name of a file"):
            ClipReader(ShardStore(location, tmp_path / "cache", retry_delays=()))
    if isinstance(name, str):  # nor where an index did not go through its checks
        for location in (str(folder), f"pipe:cat {folder}/{{}}", "https://host/set"):
            with pytest.raises(ShardError, match="is no file name within the set"):
                ShardStore(location, tmp_path / "cache").path(ShardInfo(name, 2, 2, ""))
    assert not marker.exists()


def test_names_that_a_shell_would_take_apart_are_quoted_or_refused(tmp_path: Path) -> None:
    store = ShardStore("pipe:ssh host cat /d/{}", tmp_path / "cache")
    assert store.url("shard=1,a+b@c.tar") == "pipe:ssh host cat /d/shard=1,a+b@c.tar"
    with pytest.raises(ShardError, match="can't be fetched"):
        store.url("a (b).tar")
    assert ShardStore(tmp_path).url("a (b).tar") == f"{tmp_path}/a (b).tar"


@pytest.mark.parametrize("file", ["/etc/passwd", "../../secret", "pipe:id", "~/.ssh/id_rsa"])
def test_the_list_of_rejects_is_a_file_of_the_set(folder: Path, file: str) -> None:
    edit(folder, lambda content: content.update(rejects={"file": file, "sha256": "0" * 64, "counts": {}}))
    with pytest.raises(ShardError, match=r"rejects.file is .*: it must be the name of a file"):
        ShardIndex.load(folder)


def test_checking_reads_no_file_outside_the_set(folder: Path, tmp_path: Path, capsys: Any) -> None:
    edit(
        folder,
        lambda content: content.update(rejects={"file": "/etc/hostname", "sha256": "00", "counts": {}}),
    )
    with pytest.raises(SystemExit):
        check([str(folder)])
    assert "SHA-256" not in "".join(capsys.readouterr())


def test_a_fifo_in_the_place_of_a_file_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    for name, call in (
        ("shard-000001.tar", lambda: ClipReader(folder)),
        ("shard-000001.tar", lambda: index_folder(folder)),
        ("index.table", lambda: ClipReader(folder)),
        ("index.json", lambda: ClipReader(folder)),
    ):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ShardError, match=r"no regular file|is not there|but no index.json"):
            call()


def test_only_what_the_cache_made_is_evicted(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    photos = [cache / "photo.jpg", cache / "0123456789abcdef-shard-000000.tar", cache / "thesis.tar"]
    for path in photos:
        path.write_bytes(bytes(100_000))
        os.utime(path, (0, 0))
    shards = ShardIndex.load(folder).shards
    store = ShardStore(f"pipe:cat {folder}/{{}}", cache, max(shard.bytes for shard in shards))
    first, second = (store.path(shard) for shard in shards)
    assert all(path.exists() for path in photos)
    assert not first.exists()
    assert second.exists()


def test_a_fetch_writes_through_no_link(folder: Path, tmp_path: Path) -> None:
    """Whoever knows a cache's folder can guess the names that it will use."""
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    shard = ShardIndex.load(folder).shards[0]
    honest = ShardStore(f"pipe:cat {folder}/{{}}", cache).path(shard)
    victim.write_text("precious")
    lock = cache / ".locks" / honest.name[:16]
    for path in (honest, lock):
        path.unlink()
    (cache / f"{honest.name}.{os.getpid()}.partial").symlink_to(victim)
    assert ShardStore(f"pipe:cat {folder}/{{}}", cache).path(shard).stat().st_size == shard.bytes
    lock.unlink()
    lock.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        ShardStore(f"pipe:cat {folder}/{{}}", cache).path(shard)
    assert victim.read_text() == "precious"


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None: ...


class Endless(Quiet):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 20))
        except OSError:
            pass


class RetryLater(Quiet):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "100000")
        self.end_headers()


class ToFile(Quiet):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.end_headers()


class Silent(Quiet):
    def do_GET(self) -> None:
        time.sleep(30)


class Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def test_an_honest_set_is_read_from_a_server(folder: Path, tmp_path: Path, serve: Any) -> None:
    url = serve(partial(Files, directory=str(folder)))
    reader = ClipReader(ShardStore(url, tmp_path / "cache"))
    assert (
        reader.store.path(reader.index.shards[1]).read_bytes() == (folder / "shard-000001.tar").read_bytes()
    )


@pytest.mark.parametrize("handler", [Endless, RetryLater, ToFile])
def test_no_server_decides_how_much_comes_or_how_long_it_takes(
    tmp_path: Path, serve: Any, handler: type[Quiet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.shards.store.LARGEST_INDEX", 1 << 22)
    store = ShardStore(serve(handler), tmp_path / "cache", retry_delays=(0.0,))
    started = time.monotonic()
    with pytest.raises(ShardError, match=r"index.json (gives more than|can't be fetched)"):
        store.open_index()
    with pytest.raises(ShardError, match=r"a.tar (gives more than|can't be fetched)"):
        store.path(ShardInfo("a.tar", 1, 1000, ""))
    assert time.monotonic() - started < 20
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.shards.fetch._PATIENCE", 0.5)
    store = ShardStore(serve(Silent), tmp_path / "cache", retry_delays=())
    with pytest.raises(ShardError, match=r"can't be fetched: it was ended, at the latest after"):
        store.path(ShardInfo("a.tar", 1, 1000, ""))


def test_messages_show_no_secret_of_a_url(tmp_path: Path) -> None:
    for url in ("https://me:hunter2@127.0.0.1:9/set/{}?sig=hunter2", "pipe:curl -H hunter2 127.0.0.1:9/{}"):
        with pytest.raises(ValueError, match="has shards at URLs") as raised:
            ShardStore(url)
        assert "hunter2" not in str(raised.value)
    store = ShardStore("https://me:hunter2@127.0.0.1:9/{}?sig=hunter2", tmp_path / "cache", retry_delays=())
    with pytest.raises(ShardError, match=r"https://127.0.0.1:9/a.tar\?… can't be fetched") as raised:
        store.path(ShardInfo("a.tar", 1, 1000, ""))
    assert "hunter2" not in str(raised.value)
    with pytest.raises(ValueError, match="blanks or control characters"):
        ShardStore("https://host/a b", tmp_path / "cache")


def test_no_secret_of_a_url_is_in_the_cache(folder: Path, tmp_path: Path, serve: Any) -> None:
    url = serve(partial(Files, directory=str(folder))).replace("//", "//me:hunter2@") + "/{}?sig=hunter2"
    reader = ClipReader(ShardStore(url, tmp_path / "cache"))
    assert isinstance(reader.read(Ticket(0, 0)), Clip)
    assert not [path for path in (tmp_path / "cache").rglob("*") if "hunter2" in path.name]
    path = reader.store.path(reader.index.shards[0])
    path.write_bytes(path.read_bytes()[:-512])
    reader.close()
    with pytest.raises(ShardError, match=r"-shard-000000.tar has \d+ bytes") as raised:
        reader.read(Ticket(0, 0))
    assert "hunter2" not in str(raised.value)


def table_header(folder: Path) -> tuple[bytes, dict[str, Any], bytes]:
    content = (folder / "index.table").read_bytes()
    start = content.index(b"\n") + 1
    length = int.from_bytes(content[start : start + 8], "little")
    return content[:start], json.loads(content[start + 8 : start + 8 + length]), content[start + 8 + length :]


@pytest.mark.parametrize(
    "change",
    [{"offset": -64}, {"offset": 10**5000}, {"shape": [1 << 62]}, {"shape": [-1]}, {"dtype": "O"}, {"dtype": "zz"}],
    ids=["before", "digits", "huge", "negative", "objects", "unknown"],
)  # fmt: skip
def test_a_table_of_absurd_columns_is_refused(folder: Path, change: dict[str, Any]) -> None:
    magic, header, rest = table_header(folder)
    sys.set_int_max_str_digits(0)
    try:
        header["columns"]["durations"] |= change
        text = json.dumps(header).encode()
    finally:
        sys.set_int_max_str_digits(4300)
    (folder / "index.table").write_bytes(magic + len(text).to_bytes(8, "little") + text + rest)
    with pytest.raises(ShardError, match=r"index.table (is no table of clips|is cut off)"):
        ClipReader(folder)


def change_header(folder: Path, change: dict[str, Any], more: bytes = b"") -> None:
    """Another header for a table, whose columns stay where they are; ``more`` comes behind them."""
    magic, header, rest = table_header(folder)
    start = len(magic) + 8 + len(json.dumps(header))
    rest = rest[-start % 64 :]
    text = json.dumps(header | change | {"bytes": len(rest) + len(more)}).encode()
    head = magic + len(text).to_bytes(8, "little") + text
    (folder / "index.table").write_bytes(head.ljust(-(-len(head) // 64) * 64, b"\0") + rest + more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": ["/etc/passwd", "../../secret"]}, "names of files in the set's folder"),
        ({"shards": ["shard-000000.tar", "other.tar"]}, "other shards, classes or numbers of clips"),
        ({"num_classes": 1 << 31}, "other shards, classes or numbers of clips"),
    ],
    ids=["outside", "another", "classes"],
)
def test_a_table_speaks_of_the_shards_and_classes_of_its_index(
    folder: Path, tmp_path: Path, capsys: Any, change: dict[str, Any], message: str
) -> None:
    change_header(folder, {})
    assert len(ClipReader(folder)) == 4  # the honest one
    change_header(folder, change)
    with pytest.raises(ShardError, match=message):
        ClipReader(folder)
    with pytest.raises(SystemExit):
        check([str(folder), "--fast"])
    assert message in capsys.readouterr().out
    store = ShardStore(f"pipe:cat {folder}/{{}}", tmp_path / "cache", retry_delays=())
    with pytest.raises(ShardError, match=r"pipe:… is not the table of that set's index"):
        store.open_index()
    index_folder(folder)
    assert len(store.open_index()[1]) == 4  # the one that was refused is not kept


def test_a_table_claims_no_more_bytes_than_its_shard_has(folder: Path) -> None:
    _, header, _ = table_header(folder)
    shape = header["columns"]["blocks"]["shape"]
    claims = np.full(shape, 0xFFFF_FFF0, "<u4").tobytes()  # 2 TB each
    blocks = {"dtype": "<u4", "shape": shape, "offset": header["bytes"]}
    change_header(folder, {"columns": header["columns"] | {"blocks": blocks}}, claims)
    reader = ClipReader(folder, substitutes=False)
    failure = reader.read(Ticket(0, 0))
    assert isinstance(failure, ReadFailure)
    assert "the shard ends inside" in failure.reason
    with pytest.raises(DecodeError, match="its shard ends before it does"):
        read_clip(folder, reader.table, 0)
    reader.close()
    (folder / "shard-000000.tar").unlink()
    os.mkfifo(folder / "shard-000000.tar")
    with pytest.raises(DecodeError, match="no regular file"):
        read_clip(folder, reader.table, 0)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"format": "earsight-shards", "version": ' + b"9" * 5000 + b"}", b"\xff", b'{"a": NaN}'],
    ids=["deep", "digits", "bytes", "nan"],
)  # fmt: skip
def test_an_index_that_no_reader_can_take_is_refused(folder: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(ShardError, match=r"index.json can't be read as an index of shards"):
        ShardIndex.load(folder)
