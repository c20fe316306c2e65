import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace

import pytest
from support.shards import encode_flac, encode_jpeg, make_picture, make_shards, make_waveform

from datasets.index import build_table, index_folder, main
from datasets.shards.manifest import Label, RejectList, ShardIndex
from datasets.shards.scan import scan_shard
from datasets.shards.table import ClipTable
from datasets.shards.tar import ShardError


def write_tar(path, members: Mapping[str, bytes], tar_format=tarfile.USTAR_FORMAT, mtime: float = 0.0):
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return path


FLAC = encode_flac(make_waveform(0, 0.1))
JPEG = encode_jpeg(make_picture(0, 0, (32, 32)))


def test_index_survives_saving(tmp_path):
    folder = make_shards(tmp_path, 5, 3)
    index = ShardIndex.load(folder)
    assert index.samples == 5
    assert [label.count for label in index.labels] == [2, 2, 1]
    changed = ShardIndex(
        index.shards,
        (Label("ü", "/m/1", 4),),
        None,
        {"a": [1]},
        RejectList("rejects.csv", "00", {"silent": 1}),
        2.5,
    )
    changed.save(folder)
    assert ShardIndex.load(folder) == changed
    assert not list(folder.glob("*.partial"))


def test_fingerprint_follows_shards_and_vocabulary_alone(tmp_path):
    index = ShardIndex.load(make_shards(tmp_path, 5, 3))
    same = ShardIndex(index.shards, index.labels, None, {"other": 1})
    assert same.fingerprint == index.fingerprint
    assert ShardIndex(index.shards[:1], index.labels).fingerprint != index.fingerprint
    assert ShardIndex(index.shards, index.labels[::-1]).fingerprint != index.fingerprint


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ShardError, match="nowhere does not exist"):
        ShardIndex.load(tmp_path / "nowhere")
    with pytest.raises(
        ShardError, match=r"no shards \(\*\.tar\); make some with: python -m datasets.prepare"
    ):
        ShardIndex.load(tmp_path)
    with pytest.raises(ShardError, match="has no shards"):
        index_folder(tmp_path)
    make_shards(tmp_path / "parts" / "train", 2, 1)
    with pytest.raises(ShardError, match=r"its folders have \(train\); give one of those"):
        ShardIndex.load(tmp_path / "parts")
    make_shards(tmp_path, 2, 1)
    (tmp_path / "index.json").unlink()
    with pytest.raises(
        ShardError, match=r"has 2 shards but no index.json; make it with: python -m datasets.index"
    ):
        ShardIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read"),
        ("[]", "can't be read"),
        ('{"format": "x"}', "is no index of shards"),
        ('{"format": "earsight-shards", "version": 1}', r"version 1, this program reads 2\. Prepare"),
        ('{"format": "earsight-shards", "version": 2, "shards": [{"nome": 1}]}', "can't be read"),
    ],
)
def test_unreadable_index_is_refused(tmp_path, content, message):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ShardError, match=message):
        ShardIndex.load(tmp_path)


def test_shards_made_elsewhere(tmp_path):
    first = {"b/0001.wav": FLAC, "b/0001.jpg": JPEG, "b/0001.json": b'{"label": "dog", "duration": 0.1}'}
    second = {
        "0001.00.JPG": JPEG,
        "0001.01.JPG": JPEG,
        "0001.flac": FLAC,
        "0001.cls": b"cat",
        "README": b"no sample",
    }
    write_tar(tmp_path / "a.tar", first)
    write_tar(tmp_path / "b.tar", second, tarfile.PAX_FORMAT, mtime=1.5)  # with extended headers
    index = index_folder(tmp_path)
    assert index == ShardIndex.load(tmp_path)
    assert index.labels == (Label("cat", None, 1), Label("dog", None, 1))
    assert index.duration_seconds == pytest.approx(0.1)
    table = ClipTable.open(tmp_path, index.fingerprint)
    assert [table.id(row) for row in range(2)] == ["a/b/0001", "b/0001"]
    assert [table.labels(row) for row in range(2)] == [(1,), (0,)]
    for row, (shard, members) in enumerate((("a", first), ("b", second))):
        data = (tmp_path / f"{shard}.tar").read_bytes()
        by_suffix = {name.partition(".")[2].lower(): content for name, content in members.items()}
        for slot, extent in table.members(row).items():
            content = by_suffix[table.slots[slot]]
            assert data[extent.offset + 512 :].startswith(content)
            assert extent.blocks == -(-len(content) // 512)


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_in_extended_headers(tmp_path, tar_format):
    key = "x" * 150
    scan = scan_shard(write_tar(tmp_path / "a.tar", {f"{key}.flac": FLAC, f"{key}.jpg": JPEG}, tar_format))
    assert [sample.key for sample in scan.samples] == [key]
    assert list(scan.samples[0].members) == ["flac", "jpg"]
    assert not scan.samples[0].members["flac"].plain


def test_numbered_labels_keep_their_numbers(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, "0.cls": b"3", "1.jpg": JPEG, "1.cls": b"1"})
    index = index_folder(tmp_path)
    assert [(label.name, label.count) for label in index.labels] == [("0", 0), ("1", 1), ("2", 0), ("3", 1)]
    assert [ClipTable.open(tmp_path).labels(row) for row in range(2)] == [(3,), (1,)]


def test_a_set_in_the_making_is_not_indexed(tmp_path):
    folder = make_shards(tmp_path / "train", 2, 1)
    (tmp_path / ".prepare").mkdir()
    assert len(index_folder(folder).shards) == 2  # this split is finished
    (folder / "index.json").unlink()
    with pytest.raises(ShardError, match=r"is not finished: datasets\.prepare is at work on it"):
        index_folder(folder)


def test_mixed_labels_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": JPEG, "0.cls": b"3", "1.jpg": JPEG, "1.cls": b"dog"})
    with pytest.raises(ShardError, match=r"numbers \(3\), others names \('dog'\)"):
        index_folder(tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_labels_by_mid_number_or_name(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.flac": FLAC, "0.json": b'{"labels": ["/m/2", 0, "Purr"]}'})
    info = scan_shard(path).info
    index = ShardIndex((info,), (Label("Dog", "/m/1"), Label("Cat", "/m/2"), Label("Purr", "/m/3")))
    assert build_table(tmp_path, index).labels(0) == (0, 1, 2)
    with pytest.raises(ShardError, match=r"a.tar: label '/m/2' of sample '0' is not in the vocabulary"):
        build_table(tmp_path, ShardIndex((info,), (Label("Dog"), Label("Purr"))))


def damage(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def test_damaged_and_cut_shards_are_found_by_the_pass(tmp_path):
    make_shards(tmp_path, 4, 4)
    path = tmp_path / "shard-000000.tar"
    table = ClipTable.open(tmp_path)
    header = table.members(2)[1].offset
    whole = path.read_bytes()
    damage(path, header, b"\xff" * 16)
    with pytest.raises(ShardError, match=rf"shard-000000.tar is damaged: no tar header at byte {header}"):
        scan_shard(path)
    path.write_bytes(whole[: header + 700])
    with pytest.raises(ShardError, match=r"cut off at byte .* inside member 'clip-00002.flac'"):
        scan_shard(path)
    path.write_bytes(whole[:header])
    with pytest.raises(ShardError, match="without the end mark"):
        scan_shard(path)
    path.write_bytes(b"")
    with pytest.raises(ShardError, match="cut off"):
        scan_shard(path)
    path.write_bytes(b"\x1f\x8b" + bytes(range(256)) * 4)
    with pytest.raises(ShardError, match="is no tar"):
        scan_shard(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.json": b"{"}, "json of sample 'a' can't be read"),
        ({"a.json": b"[]"}, "json of sample 'a' is no object"),
        ({"a.json": b'{"labels": {"x": 1}}'}, "labels of sample 'a'"),
        ({"a.flac": FLAC, "b.flac": FLAC, "a.jpg": JPEG}, "key 'a' stands there twice"),
        ({"README": b""}, "holds no samples"),
    ],
)
def test_samples_that_make_no_sense(tmp_path, members, message):
    with pytest.raises(ShardError, match=message):
        scan_shard(write_tar(tmp_path / "a.tar", members))


def test_shards_without_media_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.txt": b"words"})
    with pytest.raises(ShardError, match="no sound, picture or video"):
        index_folder(tmp_path)


def test_changed_shards_do_not_pass(tmp_path):
    make_shards(tmp_path, 4, 2)
    index = ShardIndex.load(tmp_path)
    path = tmp_path / "shard-000001.tar"
    damage(path, 600, b"X")  # inside json: {"id"...
    with pytest.raises(ShardError):
        build_table(tmp_path, index, hashing=True)
    make_shards(tmp_path, 4, 2)
    damage(path, path.stat().st_size - 1, b"X")  # after the end mark: only the hash can tell
    build_table(tmp_path, index)
    with pytest.raises(
        ShardError, match=r"shard-000001.tar has SHA-256 .*, the index says .*: it was changed"
    ):
        build_table(tmp_path, index, hashing=True)
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ShardError, match=r"shard-000001.tar has \d+ bytes, the index says \d+"):
        build_table(tmp_path, index)
    path.unlink()
    with pytest.raises(ShardError, match=r"shard-000001.tar is in the index but can't be opened"):
        build_table(tmp_path, index)


def test_command_indexes_and_keeps_an_index_that_is_there(tmp_path, capsys):
    make_shards(tmp_path, 4, 2)
    before = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.table").unlink()
    main([str(tmp_path)])
    assert "2 shards, 4 samples" in capsys.readouterr().out
    assert json.loads((tmp_path / "index.json").read_text()) == before
    assert len(ClipTable.open(tmp_path, ShardIndex.load(tmp_path).fingerprint)) == 4
    main([str(tmp_path), "--overwrite"])
    assert ShardIndex.load(tmp_path).shards == ShardIndex.load(make_shards(tmp_path, 4, 2)).shards
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "shard-000000.tar" in capsys.readouterr().err


def test_overwriting_keeps_what_only_the_earlier_index_knows(tmp_path, capsys):
    make_shards(tmp_path, 4, 2)
    made = ShardIndex.load(tmp_path)
    labels = (*(replace(label, mid=f"/m/{i}") for i, label in enumerate(made.labels[::-1])), Label("rare"))
    earlier = replace(made, labels=labels, rejects=RejectList("rejects.csv", "00", {"silent": 1}))
    earlier.save(tmp_path)
    (tmp_path / "shard-000000.tar").unlink()  # clips 0 and 1
    main([str(tmp_path), "--overwrite"])
    index = ShardIndex.load(tmp_path)
    assert [(label.name, label.mid, label.count) for label in index.labels] == [
        ("class 2", "/m/0", 1),
        ("class 1", "/m/1", 0),
        ("class 0", "/m/2", 1),
        ("rare", None, 0),
    ]
    assert (index.settings, index.fbank, index.rejects) == (earlier.settings, earlier.fbank, earlier.rejects)
    assert (index.shards, index.duration_seconds) == (made.shards[1:], 2.0)
    assert [ClipTable.open(tmp_path, index.fingerprint).labels(row) for row in range(2)] == [(0,), (2,)]
    assert "are kept from the index that was there" in capsys.readouterr().out
    replace(earlier, labels=labels[1:]).save(tmp_path)
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--overwrite"])
    assert "label 'class 2' of sample 'clip-00002' is not in the vocabulary" in capsys.readouterr().err
    (tmp_path / "index.json").write_text('{"format": "earsight-shards", "version": 1}')
    main([str(tmp_path), "--overwrite"])
    assert "are lost" in capsys.readouterr().out
    assert [label.name for label in ShardIndex.load(tmp_path).labels] == ["class 0", "class 2"]
