"""Samples of shards that others made: what no table can hold is refused by file, sample and field."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from support.shards import encode_jpeg, make_picture

from datasets.index import index_folder
from datasets.shards.scan import scan_shard
from datasets.shards.tar import BLOCK, ShardError

JPEG = encode_jpeg(make_picture(0, 0, (32, 32)))


def write_shard(folder: Path, *members: tuple[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path = folder / "a.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("json", '{"duration": 1e400}', "duration inf is no number from 0"),
        ("json", '{"duration": NaN}', "duration nan is no number from 0"),
        ("json", '{"duration": -1}', "duration -1 is no number from 0"),
        ("json", '{"duration": 1%s}' % ("0" * 400), "duration an integer of more than 64 bits is no number"),
        ("json", '{"duration": 1%s}' % ("0" * 5000), "can't be read"),
        ("json", '{"frame_times": [1e400]}', "inf in frame_times is no number of seconds"),
        ("json", '{"frame_times": [0, NaN]}', "nan in frame_times is no number of seconds"),
        ("json", '{"frame_times": [1%s]}' % ("0" * 400), "in frame_times is no number of seconds"),
        ("json", '{"id": "\\ud800"}', "is no text in UTF-8"),
        ("json", '{"id": "%s"}' % ("a" * 5000), "is no text in UTF-8 of at most 4096 characters"),
        ("json", '{"id": [1]}', "id a list of 1 is no text"),
        ("json", '{"label": 1000000000000}', "label 1000000000000 of sample '0' must be a number below 100000"),
        ("json", '{"labels": ["\\ud800"]}', "must be a number below 100000 or a name in UTF-8"),
        ("json", "[" * 100_000, "can't be read"),
        ("cls", "999999999999", "label 999999999999 of sample '0' must be a number below 100000"),
        ("cls", "9" * 5000, "of sample '0' must be a number below 100000"),
        ("cls", " " * (16 << 20) + "1", "member '0.cls' has 16777217 bytes; it may have 16777216"),
    ],
    ids=lambda value: ascii(value)[:24],
)  # fmt: skip
def test_fields_that_no_table_can_hold(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write_shard(tmp_path, (f"0.{name}", content.encode()), ("0.jpg", JPEG))
    with pytest.raises(ShardError) as refused:
        index_folder(tmp_path)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)
    assert not (tmp_path / "index.json").exists()


def test_other_fields_may_say_anything(tmp_path: Path) -> None:
    content = {"id": 7, "duration": "long", "frame_times": [None], "score": float("nan"), "label": 99_999}
    write_shard(
        tmp_path,
        ("0.json", json.dumps(content).encode()),
        ("0.detections.json", b" " * (17 << 20)),
        ("0.jpg", JPEG),
    )
    assert len(index_folder(tmp_path).labels) == 100_000


def test_names_are_bounded_and_in_utf8(tmp_path: Path) -> None:
    path = write_shard(tmp_path, ("0.jpg", JPEG), ("a" * (1 << 20) + ".jpg", JPEG), kind=tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match="bytes; it may have 1048576"):
        scan_shard(path)
    path = write_shard(tmp_path, ("a" * (1 << 20) + ".jpg", JPEG), kind=tarfile.PAX_FORMAT)
    with pytest.raises(ShardError, match="bytes; it may have 1048576"):
        scan_shard(path)
    path = write_shard(tmp_path, ("a\udcff.jpg", JPEG), kind=tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match=r"'a\\udcff' of a member is no UTF-8"):
        scan_shard(path)


@pytest.mark.parametrize(
    "records",
    [b"9" * 5000 + b" path=x\n", b"2 " * 200_000 + b"=", b"0 path=x\n"],
    ids=lambda value: ascii(value)[:24],
)
def test_records_of_pax_that_lie_about_their_length_name_nothing(tmp_path: Path, records: bytes) -> None:
    path = write_shard(tmp_path, ("x", records), ("0.jpg", JPEG))
    data = bytearray(path.read_bytes())
    data[156:157] = tarfile.XHDTYPE
    path.write_bytes(with_checksum(data))
    assert [sample.key for sample in scan_shard(path, hashing=False).samples] == ["0"]


@pytest.mark.parametrize("hashing", [False, True])
def test_a_member_of_negative_size_is_damage(tmp_path: Path, hashing: bool) -> None:
    path = write_shard(tmp_path, ("0.jpg", JPEG))
    data = bytearray(path.read_bytes())
    data[124:136] = (-2 * BLOCK).to_bytes(12, "big", signed=True)  # a reader that skips it goes back for ever
    path.write_bytes(with_checksum(data))
    with pytest.raises(ShardError, match=r"a.tar is no tar \(member '0.jpg' of -1024 bytes\)"):
        scan_shard(path, hashing)


def with_checksum(data: bytearray) -> bytes:
    """A tar whose first header was changed, with that header's right sum."""
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    return bytes(data)
