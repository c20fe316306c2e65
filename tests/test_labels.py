"""Label files of every form, and how files are matched with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.index import Label
from datasets.labels import LabelFileError, Vocabulary, read_classes, read_label_file, vocabulary_of
from datasets.sources import list_videos, plan_folders, plan_labelled, plan_unlabelled, shuffled

AUDIOSET = """\
# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=4, num_segs=4
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
-a.b-c_d.ef, 40.000, 50.000, "/m/068hy"
00W1lcxW-WU, 30.000, 40.000, "/m/07q6cd_"
abc_def-ghi, 30.000, 40.000, "/m/068hy"
"""
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/068hy,"Pets, domestic"\n2,/m/07q6cd_,"Squeak"\n'
VGGSOUND = """\
---g-f_I2yQ,1,"people marching",test
--0PQM4-hqg,30,waterfall burbling,train
--0PQM4-hqg,90,"people marching",train
KlsG1EnBEjc,361,"electric shaver, electric razor shaving",train
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def audioset(tmp_path: Path):
    write(tmp_path / "class_labels_indices.csv", CLASSES)
    return read_label_file(write(tmp_path / "eval_segments.csv", AUDIOSET))


def sources(plan) -> dict[str, str]:
    return {task.id: task.source for task in plan.tasks}


def reasons(rejects) -> list[tuple[str, str]]:
    return [(reject.source, reject.reason) for reject in rejects]


def test_audioset_rows_and_vocabulary(audioset):
    assert [row.name for row in audioset.rows][:2] == ["--4gqARaEJE", "-a.b-c_d.ef"]
    assert audioset.rows[0][1:4] == (0.0, 10.0, ("/m/068hy", "/m/07q6cd_"))
    vocabulary = vocabulary_of(audioset, None)
    assert vocabulary.labels[1] == Label("Pets, domestic", "/m/068hy")
    assert vocabulary.ids(audioset.rows[0].labels) == (1, 2)
    assert vocabulary.ids(["Squeak", "/m/07q6cd_"]) == (2,)


def test_audioset_without_class_file(tmp_path: Path):
    labels = read_label_file(write(tmp_path / "eval_segments.csv", AUDIOSET))
    with pytest.raises(LabelFileError, match=r"class_labels_indices\.csv, which is not beside it"):
        vocabulary_of(labels, None)


@pytest.mark.parametrize(
    ("name", "identifier", "cut"),
    [
        ("--4gqARaEJE.mp4", "--4gqARaEJE_0.000", None),
        ("--4gqARaEJE.f137.mkv", "--4gqARaEJE_0.000", None),
        ("sub/--4gqARaEJE_0.000_10.000.mp4", "--4gqARaEJE_0.000", True),
        ("-a.b-c_d.ef.mp4", "-a.b-c_d.ef_40.000", None),
        ("-a.b-c_d.ef_40.webm", "-a.b-c_d.ef_40.000", True),
        ("00W1lcxW-WU_30.000.mp4", "00W1lcxW-WU_30.000", True),
        ("00W1lcxW-WU_30000_40000.mp4", "00W1lcxW-WU_30.000", True),
        ("00W1lcxW-WU-30_small.mp4", "00W1lcxW-WU_30.000", True),
        ("abc_def-ghi_000030.mp4", "abc_def-ghi_30.000", True),
        ("abc_def-ghi.360p.mp4", "abc_def-ghi_30.000", None),
        ("abc_def-ghi_360p.mp4", "abc_def-ghi_30.000", None),
    ],
)
def test_names_of_files(audioset, name, identifier, cut):
    plans, unmatched = plan_labelled([name], audioset, vocabulary_of(audioset, None), Path(), "auto")
    (task,) = plans[None].tasks
    assert (task.source, task.id, task.cut) == (name, identifier, cut)
    assert unmatched == []
    assert [reject.reason for reject in plans[None].rejects] == ["file_missing"] * 3


def test_other_names_do_not_match(audioset):
    names = ["--4gqARaEJE.mp4", "00W1lcxW-WU_99.mp4", "abc_def-ghiX.mp4", "holiday.mp4"]
    _, unmatched = plan_labelled(names, audioset, vocabulary_of(audioset, None), Path(), "auto")
    assert reasons(unmatched) == [(name, "label_unknown") for name in names[1:]]
    assert "at 30 s" in unmatched[0].detail


def test_same_clip_twice(audioset):
    names = ["a/00W1lcxW-WU.mp4", "b/00W1lcxW-WU_30.000.mp4"]
    plans, _ = plan_labelled(names, audioset, vocabulary_of(audioset, None), Path(), "auto")
    assert sources(plans[None]) == {"00W1lcxW-WU_30.000": names[0]}
    assert (names[1], "duplicate_id") in reasons(plans[None].rejects)


def test_vggsound(tmp_path: Path):
    labels = read_label_file(write(tmp_path / "vggsound.csv", VGGSOUND))
    vocabulary = vocabulary_of(labels, None)
    assert vocabulary.labels[0].name == "electric shaver, electric razor shaving"
    names = ["--0PQM4-hqg.mp4", "---g-f_I2yQ_000001.mp4", "KlsG1EnBEjc_000361.mp4"]
    plans, unmatched = plan_labelled(names, labels, vocabulary, Path(), "auto")
    assert unmatched == []
    assert sources(plans["test"]) == {"---g-f_I2yQ_000001": names[1]}
    assert sources(plans["train"]) == {  # a whole video serves both of its segments
        "--0PQM4-hqg_000030": names[0],
        "--0PQM4-hqg_000090": names[0],
        "KlsG1EnBEjc_000361": names[2],
    }
    assert [(t.start, t.end, t.cut) for t in plans["train"].tasks][:2] == [(30, 40, False), (90, 100, False)]
    plans, unmatched = plan_labelled(names, labels, vocabulary, Path(), "clips")
    assert reasons(unmatched) == [("--0PQM4-hqg.mp4", "label_unknown")]


def test_manifest(tmp_path: Path):
    for name in ("a.mp4", "sub/b.mp4", "other.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "")
    rows = ["dog;cat,a.mp4,,,x", "cat,sub/b.mp4,1.5,3,y", ",./a.mp4,0,1,z", "cat,gone.mp4,,,"]
    labels = read_label_file(write(tmp_path / "set.csv", "\n".join(["label,path,start,end,note", *rows])))
    vocabulary = vocabulary_of(labels, None)
    assert [label.name for label in vocabulary.labels] == ["cat", "dog"]
    plans, unmatched = plan_labelled(list_videos(tmp_path), labels, vocabulary, tmp_path, "auto")
    assert [task[:5] for task in plans[None].tasks] == [
        ("a.mp4", "a", (0, 1), None, None),
        ("sub/b.mp4", "sub/b_1.500", (0,), 1.5, 3.0),
        ("gone.mp4", "gone", (0,), None, None),
    ]
    assert reasons(plans[None].rejects) == [("a.mp4", "label_unknown")]  # a row without a class
    assert reasons(unmatched) == [("other.mp4", "label_unknown")]


def test_nothing_matches_shows_both_sides(tmp_path: Path):
    labels = read_label_file(write(tmp_path / "vggsound.csv", VGGSOUND))
    with pytest.raises(LabelFileError) as error:
        plan_labelled(
            ["x/one.mp4", "two.mp4", "three.mp4"], labels, vocabulary_of(labels, None), Path(), "auto"
        )
    for example in ("---g-f_I2yQ", "--0PQM4-hqg", "x/one.mp4", "two.mp4"):
        assert example in str(error.value)
    manifest = read_label_file(write(tmp_path / "set.csv", "path,label\nu.mp4,a\nv.mp4,b\n"))
    with pytest.raises(LabelFileError, match=r"u\.mp4.*v\.mp4.*one\.mp4"):
        plan_labelled(["one.mp4"], manifest, vocabulary_of(manifest, None), tmp_path, "auto")


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
        read_label_file(write(tmp_path / "labels.csv", text))


def test_class_names_that_are_no_utf8(tmp_path: Path):
    (tmp_path / "set.csv").write_bytes("path,label\na.mp4,Tür\n".encode("latin-1"))
    with pytest.raises(LabelFileError, match=r"set\.csv: class name b'T\\xfcr' is no UTF-8"):
        read_label_file(tmp_path / "set.csv")
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
        vocabulary_of(audioset, tmp_path / "classes.txt")


def test_label_outside_the_vocabulary(tmp_path: Path):
    labels = read_label_file(write(tmp_path / "set.csv", "path,label\na.mp4,dog\nb.mp4,fish\n"))
    vocabulary = vocabulary_of(labels, write(tmp_path / "classes.txt", "dog\ncat\n"))
    write(tmp_path / "a.mp4", "")
    plans, _ = plan_labelled(None, labels, vocabulary, tmp_path, "auto")
    assert [task.id for task in plans[None].tasks] == ["a"]
    assert reasons(plans[None].rejects) == [("b.mp4", "label_unknown")]


def test_folders_and_no_labels():
    names = ["cat/1.mp4", "cat/deep/2.mp4", "dog/1.mp4", "dog/1.webm", "stray.mp4"]
    plan, vocabulary = plan_folders(names, None)
    assert [label.name for label in vocabulary.labels] == ["cat", "dog"]
    assert {task.id: task.labels for task in plan.tasks} == {"cat/1": (0,), "cat/deep/2": (0,), "dog/1": (1,)}
    assert reasons(plan.rejects) == [("dog/1.webm", "duplicate_id"), ("stray.mp4", "label_unknown")]
    plain = plan_unlabelled(names)
    assert len(plain.tasks) == 4
    assert reasons(plain.rejects) == [("dog/1.webm", "duplicate_id")]


def test_shuffle_depends_on_the_seed_alone():
    tasks = plan_unlabelled([f"{i}.mp4" for i in range(50)]).tasks
    assert shuffled(tasks, 1) == shuffled(tasks, 1) != shuffled(tasks, 2)
    assert sorted(shuffled(tasks, 1)) == sorted(tasks)


def test_listing_follows_links_once(tmp_path: Path):
    (tmp_path / "real").mkdir()
    for name in ("real/b.MP4", "real/a.webm", "notes.txt", ".hidden.mp4"):
        write(tmp_path / name, "")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real" / "b.MP4")
    assert list_videos(tmp_path) == ["link.mp4", "real/a.webm", "real/b.MP4"]
