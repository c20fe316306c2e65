import gc
import io
import json
import tarfile
import warnings
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from support.shards import make_sample, make_shards, make_waveform
from webdataset.compat import WebDataset

from datasets.shards.tar import Sample, ShardWriter, check_key, make_key


@pytest.mark.parametrize(
    ("identifier", "key"),
    [
        ("00W1lcxW-WU", "00W1lcxW-WU"),
        ("-0_AbC-d_5E_30.000", "-0__AbC-d__5E__30_x2e000"),
        ("dir/ü", "dir_x2f_xc3_xbc"),
    ],
)
def test_key_of_an_id(identifier, key):
    assert make_key(identifier) == key


def test_different_ids_never_share_a_key():
    ids = [
        "a",
        "a.b",
        "a_x2eb",
        "a_b",
        "a__b",
        "_",
        "__",
        ".",
        "a_t5",
        "a_",
        "a-",
        "a b",
        "x" * 200,
        "x" * 201,
        "x" * 200 + ".",
    ]
    assert len({make_key(name) for name in ids}) == len(ids)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ü", "a b", "a\n", "x" * 81])
def test_illegal_keys_are_refused(key):
    with pytest.raises(ValueError, match="sample key"):
        check_key(key)


def write(path, *samples):
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.write(sample)
    return writer.close()


def test_members_lie_in_order_and_the_same_samples_give_the_same_bytes(tmp_path):
    samples = [make_sample(i) for i in range(3)]
    info = write(tmp_path / "a.tar", *samples)
    write(tmp_path / "b.tar", *samples)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (info.name, info.samples, info.bytes) == ("a.tar", 3, (tmp_path / "a.tar").stat().st_size)
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:4]] == [
            f"clip-00000.{s}" for s in ("json", "flac", "00.jpg", "01.jpg")
        ]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o444)}
        content = tar.extractfile(members[0])
        assert content is not None
        assert json.load(content) == samples[0].metadata


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path):
    writer = ShardWriter(tmp_path / "a.tar")
    writer.write(make_sample(0))
    assert writer.num_samples == 1
    assert writer.size > sum(len(data) for _, data in make_sample(0).members)
    assert not (tmp_path / "a.tar").exists()
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_an_error_leaves_nothing_behind(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "a.tar") as writer:
            writer.write(make_sample(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with pytest.raises(ValueError, match="at least one sample"):
        ShardWriter(tmp_path / "b.tar").close()
    assert not list(tmp_path.iterdir())


def test_bad_samples_are_refused(tmp_path):
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.write(make_sample(0))
        with pytest.raises(ValueError, match=r"'clip-00000' is written twice"):
            writer.write(make_sample(0))
        with pytest.raises(ValueError, match="two members of one suffix"):
            writer.write(Sample("k", {}, [("flac", b""), ("flac", b"")]))
        with pytest.raises(ValueError, match=r"'a\.b'"):
            writer.write(Sample("a.b", {}, []))


def test_webdataset_reads_our_shards(tmp_path):
    folder = make_shards(tmp_path, 5, 3)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # WebDataset leaves the last shard open
        samples: Any = list(cast(Iterable, WebDataset(urls, shardshuffle=False).decode("pil")))
        gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"clip-{i:05d}" for i in range(5)]
    assert samples[4]["json"]["labels"] == ["class 1"]
    assert samples[4]["01.jpg"].size == (48, 32)
    waveform, rate = soundfile.read(io.BytesIO(samples[4]["flac"]), dtype="int16")
    assert rate == 16_000
    np.testing.assert_array_equal(waveform, make_waveform(4, 1.0))
