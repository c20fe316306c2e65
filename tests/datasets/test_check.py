"""Damage to prepared shards is found and named; an intact set passes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.shards import make_sample, make_shards

from datasets.check import ShardChecker, main
from datasets.decode import decode_audio
from datasets.index import build_table
from datasets.prepare.shard_output import write_rejects
from datasets.shards.manifest import INDEX_NAME, Reject, ShardIndex
from datasets.shards.table import TABLE_NAME, ClipTable
from datasets.shards.tar import Sample, ShardWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "set", 6, 3, seconds=0.3)


def check(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    with pytest.raises(SystemExit) as ended:
        main([str(folder), "--num_workers=1", *options])
    assert isinstance(ended.value.code, int), ended.value.code
    return ended.value.code, capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--fast",)])
def test_intact(folder: Path, capsys, options):
    code, output = check(folder, capsys, *options)
    assert code == 0
    header, row = output.splitlines()
    assert dict(zip(header.split(), row.split(), strict=True)) == {
        "set": str(folder),
        "shards": "2",
        "clips": "6",
        "hours": "0.00",
        "GB": "0.000",
        "classes": "3",
        "rejects": "0",
        "problems": "0",
    }


def test_splits(folder: Path, capsys):
    shutil.copytree(folder, folder.parent / "both" / "train")
    shutil.copytree(folder, folder.parent / "both" / "val")
    code, output = check(folder.parent / "both", capsys, "--fast")
    assert code == 0
    assert len(output.splitlines()) == 3


def test_list_of_rejects(folder: Path, capsys):
    rejects = write_rejects(
        folder, [Reject("a.mp4", "silent"), Reject("b.mp4", "silent"), Reject("ü", "no_audio")]
    )
    replace(ShardIndex.load(folder), rejects=rejects).save(folder)
    code, output = check(folder, capsys, "--fast")
    assert code == 0
    assert f"{folder}: rejected 3: silent 2, no_audio 1 (see rejects.csv)" in output
    (folder / "rejects.csv").write_text("source,reason,detail\n")
    code, output = check(folder, capsys, "--fast")
    assert code == 1
    assert "rejects.csv has SHA-256" in output
    assert f"the index says {rejects.sha256}" in output
    (folder / "rejects.csv").unlink()
    code, output = check(folder, capsys)
    assert code == 1
    assert "rejects.csv, the list of rejects, is in the index but not there" in output


def test_flipped_byte(folder: Path, capsys):
    shard = folder / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x40
    shard.write_bytes(data)
    assert check(folder, capsys, "--fast")[0] == 0  # it reads no shard, and says so
    code, output = check(folder, capsys)
    assert code == 1
    assert "shard-000001.tar" in output
    assert "shard-000000.tar" not in output


@pytest.mark.parametrize("options", [(), ("--fast",)])
def test_missing_cut_and_strange_shards(folder: Path, capsys, options):
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000007.tar").touch()
    code, output = check(folder, capsys, *options)
    assert code == 1
    assert "shard-000000.tar is in the index but not there" in output
    assert "shard-000001.tar has 5000 bytes" in output
    assert "shard-000007.tar is not in the index" in output


def rewrite(folder: Path, samples: list[Sample]) -> None:
    """Makes the set anew from samples that may be bad, with the hashes they have."""
    index = ShardIndex.load(folder)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for sample in samples:
            writer.write(sample)
    index = replace(index, shards=(writer.close(), *index.shards[1:]))
    index.save(folder)
    build_table(folder, index)


def test_bad_samples(folder: Path, capsys):
    good = [make_sample(i, seconds=0.3) for i in range(3)]
    no_sound = replace(good[0], members=good[0].members[1:])
    cut_picture = replace(
        good[1], members=[good[1].members[0], ("00.jpg", b"\xff\xd8 no picture"), good[1].members[2]]
    )
    one_frame = replace(good[2], members=good[2].members[:2])
    rewrite(folder, [no_sound, cut_picture, one_frame])
    code, output = check(folder, capsys)
    assert code == 1
    assert f"sample {good[0].key}: has no sound" in output
    assert f"sample {good[1].key}: 00.jpg: picture can't be decoded" in output
    assert f"sample {good[2].key}: 1 pictures for 2 frame times" in output


def test_broken_shards_and_sets_do_not_keep_the_others_from_being_checked(tmp_path: Path, capsys):
    for split in ("a", "b"):
        make_shards(tmp_path / split, 4, 2, seconds=0.3)
    (tmp_path / "a" / "index.json").write_text('{"format": "earsight"}')
    shards = sorted((tmp_path / "b").glob("*.tar"))
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:5000] + b"\xff" * 5000 + content[10_000:])
    odd = replace(make_sample(2, seconds=0.3))
    odd = replace(odd, metadata=odd.metadata | {"frame_times": 5})
    with ShardWriter(shards[1]) as writer:
        writer.write(odd)
        writer.write(replace(make_sample(3, seconds=0.3), members=[("flac", b"none")]))
    code, output = check(tmp_path, capsys)
    assert code == 1
    for problem in (
        f"{tmp_path / 'a' / 'index.json'}",
        f"{shards[0]} is damaged",
        f"{shards[1]}: sample {odd.key}: frame times are no list: 5",
        "flac: sound can't be decoded",
    ):
        assert problem in output


def test_a_clip_that_kills_its_decoder_is_named_and_the_rest_of_its_shard_checked(folder: Path, monkeypatch):
    index = ShardIndex.load(folder)

    def dying(data: bytearray) -> None:
        if len(decode_audio(data)) and hashlib.sha256(data).digest() == deadly:
            os.kill(os.getpid(), signal.SIGSEGV)

    deadly = hashlib.sha256(make_sample(1, seconds=0.3).members[0][1]).digest()
    monkeypatch.setattr("datasets.check.decode_audio", dying)
    report = ShardChecker(folder, None, index.labels)(index.shards[0])
    assert report.samples == 3
    assert len(report.problems) == 1
    assert (
        f"sample {make_sample(1).key}: the process that decoded it ended with SIGSEGV" in report.problems[0]
    )


def test_repeated_ids_and_wrong_counts(folder: Path, capsys):
    samples = [make_sample(i, seconds=0.3) for i in (0, 4, 0)]
    samples[2] = replace(samples[2], key="another")
    rewrite(folder, samples)
    code, output = check(folder, capsys)
    assert code == 1
    for identifier in ("clip-00000", "clip-00004"):
        assert f"id {identifier!r} is there more than once" in output
    assert "2 clips of class 'class 2'" not in output
    assert "1 clips of class 'class 2', the index says 2" in output


@pytest.mark.parametrize("column", ["_id_bytes", "label_ids", "_starts"])
def test_table_of_other_ids_labels_or_places(folder: Path, capsys, column: str):
    table = ClipTable.open(folder)
    values = getattr(table, column)
    content = (folder / TABLE_NAME).read_bytes()
    assert content.count(values.tobytes()) == 1
    (folder / TABLE_NAME).write_bytes(content.replace(values.tobytes(), values[::-1].tobytes()))
    code, output = check(folder, capsys)
    assert code == 1
    assert "other ids, labels or places than in shard-000001.tar for" in output


def test_stale_table_and_no_index(folder: Path, capsys):
    content = json.loads((folder / INDEX_NAME).read_text())
    content["shards"][0]["sha256"] = "0" * 64
    (folder / INDEX_NAME).write_text(json.dumps(content))
    code, output = check(folder, capsys, "--fast")
    assert code == 1
    assert "belongs to another state of index.json" in output
    with pytest.raises(SystemExit, match=r"datasets\.check: .* does not exist"):
        main([str(folder / "nothing")])


def test_output_that_nobody_reads_ends_the_command_quietly(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            main([str(folder), "--fast"])
    assert ended.value.code == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""
