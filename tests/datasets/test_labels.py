"""Label files of every form, and vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labels import AUDIOSET, CLASSES, write

from datasets.prepare.labels import LabelFileError, Vocabulary, read_classes, read_label_file, vocabulary_of
from datasets.shards.manifest import Label


@pytest.fixture
def audioset(tmp_path: Path):
    write(tmp_path / "class_labels_indices.csv", CLASSES)
    return read_label_file(write(tmp_path / "eval_segments.csv", AUDIOSET))


def test_audioset_rows_and_vocabulary(audioset):
    rows = list(audioset.rows())
    assert [row.name for row in rows][:2] == ["--4gqARaEJE", "-a.b-c_d.ef"]
    assert rows[0][1:4] == (0.0, 10.0, ("/m/068hy", "/m/07q6cd_"))
    vocabulary = vocabulary_of(audioset, {"/m/068hy"}, None)
    assert vocabulary.labels[1] == Label("Pets, domestic", "/m/068hy")
    assert vocabulary.ids(rows[0].labels) == (1, 2)
    assert vocabulary.ids(["Squeak", "/m/07q6cd_"]) == (2,)


def test_audioset_without_class_file(tmp_path: Path):
    labels = read_label_file(write(tmp_path / "eval_segments.csv", AUDIOSET))
    with pytest.raises(LabelFileError, match=r"class_labels_indices\.csv, which is not beside it"):
        vocabulary_of(labels, {"/m/068hy"}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("name,class\na,b\n", r"form of this label file is not known.*name,class"),
        ("path,label\n", "no rows"),
        ("path,label\na.mp4\n", r":2: 1 cells under a header of 2"),
        ("path,start,end\na.mp4,x,2\n", r":2: 'x' is no number of seconds"),
        ("path,start,end\na.mp4,3,2\n", r":2: the segment 3.0-2.0 s of a.mp4 is empty"),
        ("path,label,split\na.mp4,x,../up\n", r"split '../up' can't be a folder"),
        ("path,label,split\na.mp4,x,train\nb.mp4,x,\n", "1 of 2 rows have an empty split"),
        ('id1,1,"a",train\nid2,1\n', r":2: 2 cells where VGGSound"),
    ],
)
def test_bad_label_files(tmp_path: Path, text, message):
    with pytest.raises(LabelFileError, match=message):
        list(read_label_file(write(tmp_path / "labels.csv", text)).rows())


def test_class_names_that_are_no_utf8(tmp_path: Path):
    (tmp_path / "set.csv").write_bytes("path,label\na.mp4,Tür\n".encode("latin-1"))
    with pytest.raises(LabelFileError, match=r"set\.csv: class name b'T\\xfcr' is no UTF-8"):
        list(read_label_file(tmp_path / "set.csv").rows())
    (tmp_path / "names.txt").write_bytes("Tür\n".encode("latin-1"))
    with pytest.raises(LabelFileError, match="is no UTF-8"):
        read_classes(tmp_path / "names.txt")


def test_vocabularies(tmp_path: Path, audioset):
    names = read_classes(write(tmp_path / "classes.txt", "dog\n\ncat\n"))
    assert [label.name for label in names.labels] == ["dog", "cat"]
    entries = {"labels": [{"name": "b", "mid": None, "count": 3}, {"name": "a", "mid": "/m/1", "count": 0}]}
    other_set = read_classes(write(tmp_path / "index.json", json.dumps(entries)))
    assert other_set.labels == (Label("b"), Label("a", "/m/1"))
    with pytest.raises(LabelFileError, match="named twice"):
        Vocabulary([Label("a"), Label("a")])
    with pytest.raises(LabelFileError, match="no label of"):
        vocabulary_of(audioset, {"/m/068hy"}, tmp_path / "classes.txt")
