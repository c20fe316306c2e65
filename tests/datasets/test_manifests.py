"""Published label forms with their oddities, to manifests and through ``datasets.prepare``."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from support.films import config
from support.meld import HEADER, NO_VIDEO, meld_row, touch, write_meld
from support.videos import write_video

from datasets.manifests.meld import read_meld, seconds
from datasets.manifests.rows import ManifestError
from datasets.manifests.run import main
from datasets.manifests.speech import read_crema_d, read_iemocap, read_mosei, read_ravdess
from datasets.manifests.vggsound import read_vggsound
from datasets.prepare.run import prepare
from datasets.shards.manifest import ShardIndex, label_tasks
from datasets.shards.scan import scan_shard


@pytest.fixture
def meld(tmp_path) -> Path:
    return write_meld(tmp_path / "MELD.Raw")


def test_meld_as_it_is(meld):
    found = read_meld(meld)
    rows = {row.path: row for row in found.rows.values()}
    assert len(rows) == 7
    first = rows["train/train_splits/dia0_utt0.mp4"]
    assert first.text == "I can’t, “no”"
    assert (first.labels, first.split) == ({"emotion": "neutral", "sentiment": "neutral"}, "train")
    assert rows["test/output_repeated_splits_test/dia0_utt0.mp4"].text == "Café ’s"
    assert Counter(row.split for row in rows.values()) == {"train": 2, "dev": 2, "test": 3}
    kinds = Counter(problem.kind for problem in found.problems)
    assert kinds == {
        "duplicate": 1, "known_broken": 2, "missing": 1, "zero_length": 1, "empty_file": 1, "extra": 2,
    }  # fmt: skip
    where = {problem.kind: problem.where for problem in found.problems}
    assert where["duplicate"] == "train_sent_emo.csv:4"
    assert where["missing"] == "dev_sent_emo.csv:3"
    extras = sorted(problem.where for problem in found.problems if problem.kind == "extra")
    assert [Path(name).name for name in extras] == ["final_videos_testdia0_utt1.mp4", "dia0_utt9.mp4"]
    recut = read_meld(meld, recut=True)
    paths = {Path(row.path).name for row in recut.rows.values()}
    assert "final_videos_testdia0_utt1.mp4" in paths
    assert "dia0_utt1.mp4" in {Path(p.where).name for p in recut.problems if p.kind == "extra"}
    assert seconds("1:00:01,250") == 3601.25


def test_the_command_writes_manifest_and_problems(meld, tmp_path, capsys):
    out = tmp_path / "lists" / "meld.csv"
    main(["meld", str(meld), str(out)])
    printed = capsys.readouterr().out
    assert "meld.csv: 7 rows" in printed
    assert "missing 1" in printed
    assert "python -m datasets.prepare" in printed
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "text", "label.emotion", "label.sentiment", "split"]
    assert rows[0]["path"] == "../MELD.Raw/train/train_splits/dia0_utt0.mp4"
    with out.with_name("meld.problems.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


def test_from_a_published_form_to_shards(meld, tmp_path):
    for path in meld.rglob("dia0_utt*.mp4"):
        if not path.name.startswith("."):
            write_video(path, seconds=0.3)
    out = tmp_path / "meld.csv"
    main(["meld", str(meld), str(out)])
    folders = prepare(config(out, tmp_path / "shards", min_seconds=0.1, clip_seconds=None, partial=True))
    assert [folder.name for folder in folders] == ["dev", "test", "train"]
    sizes = {folder.name: ShardIndex.load(folder).samples for folder in folders}
    assert sizes == {"dev": 2, "test": 3, "train": 2}  # as text alone where the video is of no use
    index = ShardIndex.load(folders[2])
    assert {task: len(ids) for task, ids in label_tasks(index.labels).items()} == {
        "emotion": 7,
        "sentiment": 3,
    }
    samples = [s for shard in index.shards for s in scan_shard(folders[2] / shard.name).samples]
    absent = {sample.metadata["id"].rsplit("/")[-1]: sample.metadata.get("absent") for sample in samples}
    assert absent == {"dia0_utt0": None, "dia125_utt3": {"sound": "undecodable", "frames": "undecodable"}}


def test_crema_d(tmp_path):
    touch(tmp_path, "V/1001_DFA_ANG_XX.flv", "V/1076_MTI_SAD_XX.flv", "V/1001_DFA_ANX_XX.flv", "notes.mp4")
    touch(tmp_path, "W/1001_DFA_ANG_XX.mp4")
    found = read_crema_d(tmp_path)
    rows = {Path(row.path).stem: row for row in found.rows.values()}
    assert rows["1001_DFA_ANG_XX"].labels == {"emotion": "anger"}
    assert rows["1001_DFA_ANG_XX"].text == "Don't forget a jacket."
    assert len(rows) == 2
    assert [(p.kind, Path(p.where).stem) for p in found.problems] == [
        ("extra", "1001_DFA_ANX_XX"), ("known_broken", "1076_MTI_SAD_XX"), ("duplicate", "1001_DFA_ANG_XX"),
        ("extra", "notes"), ("missing", tmp_path.name),
    ]  # fmt: skip
    assert found.problems[-1].detail == "7440 of the 7442 published clips are not there"


def test_ravdess(tmp_path):
    names = [
        "01-01-06-01-02-01-12.mp4",
        "02-01-06-01-02-01-12.mp4",
        "03-01-06-01-02-01-12.wav",
        "01-01-09-01-02-01-12.mp4",
    ]
    touch(tmp_path / "Actor_12", *names)
    touch(tmp_path / "copy", names[0])
    found = read_ravdess(tmp_path)
    (row,) = found.rows.values()
    assert row.labels == {"emotion": "fearful", "intensity": "normal"}
    assert row.text == "Dogs are sitting by the door."
    kinds = Counter(problem.kind for problem in found.problems)
    assert kinds == {"extra": 3, "duplicate": 1, "missing": 59}  # an actor speaks 60 and sings 44
    missing = {problem.where for problem in found.problems if problem.kind == "missing"}
    assert "01-01-01-01-01-01-12" in missing
    assert "01-01-01-02-01-01-12" not in missing  # there is no strong neutral
    touch(tmp_path / "Actor_12", "01-02-05-02-02-02-12.mp4")
    kinds = Counter(problem.kind for problem in read_ravdess(tmp_path).problems)
    assert kinds["missing"] == 59 + 43


def test_iemocap(tmp_path):
    dialog = tmp_path / "IEMOCAP_full_release" / "Session1" / "dialog"
    touch(dialog / "avi" / "DivX", "Ses01F_impro01.avi", "Ses01F_impro02.avi", "._Ses01F_impro01.avi")
    (dialog / "EmoEvaluation").mkdir()
    (dialog / "transcriptions").mkdir()
    (dialog / "EmoEvaluation" / "._Ses01F_impro01.txt").write_bytes(NO_VIDEO)
    (dialog / "EmoEvaluation" / "Ses01F_impro01.txt").write_text(
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n"
        "[10.0100 - 11.3925]\tSes01F_impro01_F001\txxx\t[2.5000, 2.5000, 2.5000]\n"
        "[14 - 18.0175]\tSes01F_impro01_M000\texc\t[2.5000, 2.5000, 2.5000]\n"
        "[19.0 - ?]\tSes01F_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]\n"
    )
    (dialog / "transcriptions" / "Ses01F_impro01.txt").write_text(
        "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nM: not a line\n"
    )
    found = read_iemocap(tmp_path)
    first, second = found.rows.values()
    assert (first.labels, first.text, first.split) == ({"emotion": "neutral"}, "Excuse me.", "session1")
    assert (first.start, first.end) == (6.2901, 8.2357)
    assert (second.labels, second.text) == ({"emotion": "excitement"}, "")
    assert [problem.kind for problem in found.problems] == ["no_label", "malformed", "extra"]


def test_mosei(tmp_path):
    touch(tmp_path / "Raw", "-3g5yACwYnA/2.mp4", "-3g5yACwYnA/9.mp4")
    (tmp_path / "label.csv").write_text(
        "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"
        '-3g5yACwYnA,2,"Key, is",1.0,,,,Positive,train\n'
        "-3g5yACwYnA,3,gone,0,,,,Neutral,valid\n-3g5yACwYnA,4,x,0,,,,,test\n"
    )
    found = read_mosei(tmp_path)
    first, second = found.rows.values()
    assert (first.path, first.labels, first.text, first.split) == (
        "Raw/-3g5yACwYnA/2.mp4", {"sentiment": "positive"}, "Key, is", "train",
    )  # fmt: skip
    assert second.split == "valid"
    assert [problem.kind for problem in found.problems] == ["missing", "no_label", "extra"]


def test_vggsound(tmp_path):
    touch(tmp_path, "clips/---g-f_I2yQ_000001.mp4", "clips/other_000030.mp4")
    (tmp_path / "vggsound.csv").write_text(
        '---g-f_I2yQ,1,"people marching, loudly",test\ngone,30,dog,train\n'
    )
    found = read_vggsound(tmp_path)
    first, second = found.rows.values()
    assert (first.path, first.labels) == (
        "clips/---g-f_I2yQ_000001.mp4",
        {"sound": "people marching, loudly"},
    )
    assert (second.path, second.split) == ("gone_000030.mp4", "train")
    assert [problem.kind for problem in found.problems] == ["missing", "extra"]


def test_a_folder_that_is_not_the_set(tmp_path, meld, capsys):
    (tmp_path / "empty").mkdir()
    for form in ("meld", "crema_d", "ravdess", "iemocap", "mosei", "vggsound"):
        with pytest.raises(SystemExit) as end:
            main([form, str(tmp_path / "empty"), str(tmp_path / "out.csv")])
        assert end.value.code == 2
        assert str(tmp_path / "empty") in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    (meld / "copy").mkdir()
    (meld / "copy" / "dev_sent_emo.csv").write_text(HEADER)
    with pytest.raises(ManifestError, match=r"should hold one dev_sent_emo.csv .*there are 2"):
        read_meld(meld)
    (meld / "copy" / "dev_sent_emo.csv").unlink()
    (meld / "dev_sent_emo.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ManifestError, match="column 'Utterance' is missing"):
        read_meld(meld)


TABLE = (HEADER + meld_row("Hi", "joy", "positive", 0, 0)).replace("\r\n", "\n").encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE + b'2,"never closed,Ross\n', r"dev_sent_emo.csv:3: this row can't be read .*not closed"),
        (TABLE + b"x" * 200_000, r"dev_sent_emo.csv:3: this row can't be read \(field larger than"),
        (TABLE.replace(b"Speaker", b"Emotion"), r"dev_sent_emo.csv:1: the column 'Emotion' is given twice"),
        (TABLE.replace(b"positive,0", b"positive,x"), r"dev_sent_emo.csv:2: Dialogue_ID is 'x', no number"),
        (TABLE.replace(b"positive,0", b"positive," + b"9" * 5000), r":2: Dialogue_ID is '9+…, no number"),
        (TABLE.decode().encode("utf-16"), r"dev_sent_emo.csv is text in UTF-16"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_tables_that_can_t_be_read_are_named_with_their_line(meld, content: bytes, message: str):
    (meld / "dev_sent_emo.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_meld(meld)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a,1,dog,train\nb,1,"dog,train\n', r"vggsound.csv:2: this row can't be read"),
        ("a,1,dog,train\n\nb,²,dog,train\n", r"vggsound.csv:3: 'b,²,dog,train' is not id, start"),
        ("a,%s,dog,train\n" % ("9" * 5000), r"vggsound.csv:1: .* is not id, start"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_bad_rows_of_vggsound(tmp_path, content: str, message: str):
    (tmp_path / "vggsound.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ManifestError, match=message):
        read_vggsound(tmp_path)


def test_a_row_without_a_label_stays_and_is_listed(meld):
    with (meld / "dev_sent_emo.csv").open("a", newline="") as file:
        file.write(meld_row("Well", "", "positive", 7, 7))
    found = read_meld(meld)
    (problem,) = [problem for problem in found.problems if problem.kind == "no_label"]
    assert (problem.where, problem.detail[-14:]) == ("dev_sent_emo.csv:4", "has no emotion")
    assert [row.text for row in found.rows.values() if not row.labels["emotion"]] == ["Well"]


def test_a_time_of_thousands_of_digits_is_none():
    assert seconds("9" * 5000 + ":00:00,000") != seconds("0:00:00,000")
