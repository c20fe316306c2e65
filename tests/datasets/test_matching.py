"""Files found and matched with label rows: which clips there are, which files are rejected."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.labels import AUDIOSET, CLASSES, VGGSOUND, write

from datasets.prepare.classes import vocabulary_of
from datasets.prepare.labels import LabelFile, LabelFileError, read_label_file
from datasets.prepare.matching import Files, plan_folders, plan_labelled, plan_unlabelled
from datasets.prepare.plan_db import Scratch, open_scratch
from datasets.shards.manifest import Reject


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scratch]:
    with open_scratch(tmp_path_factory.mktemp("scratch") / "it's") as scratch:
        yield scratch


@pytest.fixture
def audioset(tmp_path: Path) -> LabelFile:
    write(tmp_path / "class_labels_indices.csv", CLASSES)
    return read_label_file(write(tmp_path / "eval_segments.csv", AUDIOSET))


def match(
    scratch: Scratch,
    names: Iterable[str],
    labels: LabelFile,
    files: Files = "auto",
    *,
    root: Path = Path(),
    classes: Path | None = None,
) -> None:
    scratch.add_files(names)
    scratch.add_rows(labels.rows())
    used = {token for row in labels.rows() for token in row.labels}
    plan_labelled(scratch, labels, vocabulary_of(labels, used, classes), root, files)


def sources(scratch: Scratch, split: str | None = None) -> dict[str, str]:
    return {task.id: task.source for task in scratch.tasks(split)}


def reasons(rejects: Iterable[Reject]) -> list[tuple[str, str]]:
    return [(reject.source, reject.reason) for reject in rejects]


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
def test_names_of_files(scratch: Scratch, audioset: LabelFile, name: str, identifier: str, cut: bool | None):
    match(scratch, [name], audioset)
    (task,) = scratch.tasks(None)
    assert (task.source, task.id, task.cut) == (name, identifier, cut)
    assert [reject.reason for reject in scratch.rejects(None)] == ["file_missing"] * 3


def test_other_names_do_not_match(scratch: Scratch, audioset: LabelFile):
    names = ["--4gqARaEJE.mp4", "00W1lcxW-WU_99.mp4", "abc_def-ghiX.mp4", "holiday.mp4"]
    match(scratch, names, audioset)
    rejects = list(scratch.rejects(None))[:3]
    assert reasons(rejects) == [(name, "label_unknown") for name in names[1:]]
    assert "at 30 s" in rejects[0].detail


def test_same_clip_twice(scratch: Scratch, audioset: LabelFile):
    names = ["a/00W1lcxW-WU.mp4", "b/00W1lcxW-WU_30.000.mp4"]
    match(scratch, names, audioset)
    assert sources(scratch) == {"00W1lcxW-WU_30.000": names[0]}
    assert (names[1], "duplicate_id") in reasons(scratch.rejects(None))


def test_vggsound(scratch: Scratch, tmp_path: Path):
    labels = read_label_file(write(tmp_path / "vggsound.csv", VGGSOUND))
    names = ["--0PQM4-hqg.mp4", "---g-f_I2yQ_000001.mp4", "KlsG1EnBEjc_000361.mp4"]
    match(scratch, names, labels)
    assert scratch.splits() == ["test", "train"]
    assert reasons(scratch.rejects(None)) == []
    assert sources(scratch, "test") == {"---g-f_I2yQ_000001": names[1]}
    assert sources(scratch, "train") == {  # a whole video serves both of its segments
        "--0PQM4-hqg_000030": names[0],
        "--0PQM4-hqg_000090": names[0],
        "KlsG1EnBEjc_000361": names[2],
    }
    found = [(task.labels, task.start, task.end, task.cut) for task in scratch.tasks("train")]
    assert found[:2] == [((2,), 30, 40, False), ((1,), 90, 100, False)]


def test_a_clip_of_an_id_with_several_segments(scratch: Scratch, tmp_path: Path):
    labels = read_label_file(write(tmp_path / "vggsound.csv", VGGSOUND))
    match(scratch, ["--0PQM4-hqg.mp4"], labels, "clips")
    assert reasons(scratch.rejects(None)) == [("--0PQM4-hqg.mp4", "label_unknown")]


def test_manifest(scratch: Scratch, tmp_path: Path):
    for name in ("a.mp4", "sub/b.mp4", "other.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "")
    rows = [
        "dog;cat,a.mp4,,,x",
        "cat,sub/b.mp4,1.5,3,y",
        ",./a.mp4,0,1,z",
        "cat,gone.mp4,,,",
        "dog,./a.mp4,,,",
    ]
    labels = read_label_file(write(tmp_path / "set.csv", "\n".join(["label,path,start,end,note", *rows])))
    match(scratch, ["a.mp4", "other.mp4", "sub/b.mp4"], labels, root=tmp_path)
    assert [task[:5] for task in scratch.tasks(None)] == [
        ("a.mp4", "a", (0, 1), None, None),
        ("sub/b.mp4", "sub/b_1.500", (0,), 1.5, 3.0),
        ("gone.mp4", "gone", (0,), None, None),
    ]
    assert reasons(scratch.rejects(None)) == [
        ("a.mp4", "label_unknown"),  # a row without a class
        ("a.mp4", "duplicate_id"),
        ("other.mp4", "label_unknown"),
    ]


def test_nothing_matches_shows_both_sides(scratch: Scratch, tmp_path: Path):
    labels = read_label_file(write(tmp_path / "vggsound.csv", VGGSOUND))
    with pytest.raises(LabelFileError) as error:
        match(scratch, ["x/one.mp4", "two.mp4", "three.mp4"], labels)
    for example in ("---g-f_I2yQ", "--0PQM4-hqg", "x/one.mp4", "two.mp4"):
        assert example in str(error.value)


def test_no_path_of_a_manifest_is_there(scratch: Scratch, tmp_path: Path):
    manifest = read_label_file(write(tmp_path / "set.csv", "path,label\nu.mp4,a\nv.mp4,b\n"))
    with pytest.raises(LabelFileError, match=r"u\.mp4.*v\.mp4.*one\.mp4"):
        match(scratch, ["one.mp4"], manifest, root=tmp_path)


def test_nothing_is_said_of_files_where_none_were_looked_for(scratch: Scratch, tmp_path: Path):
    manifest = read_label_file(write(tmp_path / "set.csv", "path,label\nu.mp4,a\nv.mp4,b\n"))
    with pytest.raises(LabelFileError, match=r"names \['u\.mp4', 'v\.mp4'\]$"):
        match(scratch, [], manifest, root=tmp_path)


def test_every_row_is_a_clip_or_a_reject_and_missing_clips_are_counted_once(scratch: Scratch, tmp_path: Path):
    row = "{},1,x,train\n"
    text = "".join(row.format(name) for name in ("here", "here", "gone", "gone", "gone"))
    match(scratch, ["here.mp4"], read_label_file(write(tmp_path / "set.csv", text)))
    assert sources(scratch, "train") == {"here_000001": "here.mp4"}
    assert reasons(scratch.rejects("train")) == [
        ("here.mp4", "duplicate_id"),
        ("gone_000001", "file_missing"),
        *[("gone_000001", "duplicate_id")] * 2,
    ]


def test_label_outside_the_vocabulary(scratch: Scratch, tmp_path: Path):
    labels = read_label_file(write(tmp_path / "set.csv", "path,label\na.mp4,dog\nb.mp4,fish\n"))
    write(tmp_path / "a.mp4", "")
    match(scratch, [], labels, root=tmp_path, classes=write(tmp_path / "classes.txt", "dog\ncat\n"))
    assert [task.id for task in scratch.tasks(None)] == ["a"]
    assert reasons(scratch.rejects(None)) == [("b.mp4", "label_unknown")]


NAMES = ["cat/1.mp4", "cat/deep/2.mp4", "dog/1.mp4", "dog/1.webm", "stray.mp4"]


def test_folders_as_classes(scratch: Scratch):
    scratch.add_files(NAMES)
    vocabulary = plan_folders(scratch, None)
    assert [label.name for label in vocabulary.labels] == ["cat", "dog"]
    labels = {task.id: task.labels for task in scratch.tasks(None)}
    assert labels == {"cat/1": (0,), "cat/deep/2": (0,), "dog/1": (1,)}
    rejects = list(scratch.rejects(None))
    assert reasons(rejects) == [("dog/1.webm", "duplicate_id"), ("stray.mp4", "label_unknown")]
    assert rejects[0].detail == "id dog/1 comes again, after dog/1.mp4"


def test_no_labels(scratch: Scratch):
    scratch.add_files(NAMES)
    plan_unlabelled(scratch, listed=False)
    assert list(sources(scratch).values()) == [name for name in NAMES if name != "dog/1.webm"]
    assert reasons(scratch.rejects(None)) == [("dog/1.webm", "duplicate_id")]


def test_listed_files_that_differ_only_by_their_endings_are_two_clips(scratch: Scratch):
    scratch.add_files([*NAMES, "dog/1.webm"])
    plan_unlabelled(scratch, listed=True)
    assert list(sources(scratch)) == ["cat/1", "cat/deep/2", "dog/1", "dog/1.webm", "stray"]
    assert reasons(scratch.rejects(None)) == [("dog/1.webm", "duplicate_id")]


def test_so_are_those_of_a_csv(scratch: Scratch, tmp_path: Path):
    rows = "path,start,end\na.mp4,,\na.mkv,,\na.mp4,1,2\na.mkv,1,2\na.mkv,1,2\n"
    labels = read_label_file(write(tmp_path / "l.csv", rows))
    write(tmp_path / "a.mp4", "")
    match(scratch, [], labels, root=tmp_path)
    assert sources(scratch) == {
        "a": "a.mp4",
        "a.mkv": "a.mkv",
        "a_1.000": "a.mp4",
        "a.mkv_1.000": "a.mkv",
    }
    assert reasons(scratch.rejects(None)) == [("a.mkv", "duplicate_id")]


def test_listing_follows_links_once(scratch: Scratch, tmp_path: Path):
    (tmp_path / "real").mkdir()
    for name in ("real/b.MP4", "real/a.webm", "notes.txt", ".hidden.mp4"):
        write(tmp_path / name, "")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real" / "b.MP4")
    scratch.find_files(tmp_path)
    assert list(scratch.files()) == ["link.mp4", "real/a.webm", "real/b.MP4"]
