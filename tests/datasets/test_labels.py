"""Label files of every form, and vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labels import AUDIOSET, CLASSES, write

from datasets.prepare.classes import Vocabulary, read_classes, vocabulary_of
from datasets.prepare.labels import LabelFileError, read_label_file
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
        ("path,text,Text\na.mp4,x,y\n", r":1: the header has 2 columns 'text'; keep one"),
        ("path,label.e,Label.E\na.mp4,x,y\n", r":1: the header has 2 columns 'label.e'; keep one"),
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


def test_a_column_of_text_may_be_capitalised(tmp_path: Path):
    path = write(tmp_path / "labels.csv", 'path, Text\na.mp4,"two\nlines"\n')
    assert [row.text for row in read_label_file(path).rows()] == ["two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("classes.json", '["dog", "cat"]', ["dog", "cat"]),
        ("index.json", '{"labels": [{"name": "dog", "mid": null}]}', ["dog"]),
        ("names.txt", 'a\u2028b\r\n"c\n\nd\x85e\n', ["a\u2028b", '"c', "d\x85e"]),
        ("classes.csv", '"index","mid","display_name"\n1,/m/1,b\n0,/m/0,a\n', ["a", "b"]),
    ],
)
def test_classes_are_read_from(tmp_path: Path, name: str, content: str, classes: list[str]):
    (tmp_path / name).write_bytes(content.encode())
    assert [label.name for label in read_classes(tmp_path / name).labels] == classes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "7", "expected the index.json of a set, or a list of names"),
        ("a.json", '{"labels": 7}', "expected the index.json of a set, or a list of names"),
        ("a.json", '{"labels": [7]}', "class 0 is 7: it must have a name"),
        ("a.json", '["a", {"mid": "/m/1"}]', "class 1 is a mapping of 1: it must have a name"),
        ("a.json", '["\\ud800"]', "it must have a name"),
        ("a.json", "[" * 100_000, "can't be read: it is nested too deeply"),
        ("a.json", "{", "can't be read"),
        ("a.csv", "index,mid,display_name\nx,/m/1,b\n", r":2: 'x,/m/1,b' is not index, mid, display_name"),
        ("a.csv", "index,mid,display_name\n0,/m/1\n", r":2: '0,/m/1' is not index, mid, display_name"),
        ("a.csv", "index,mid,display_name\n%s,/m/1,b\n" % ("9" * 5000), r":2: .* is not index, mid"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_bad_class_files(tmp_path: Path, name: str, content: str, message: str):
    with pytest.raises(LabelFileError, match=rf"{name}.*{message}"):
        read_classes(write(tmp_path / name, content))
