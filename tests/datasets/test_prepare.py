"""From small real MP4s to shards: content, rejects, splits, workers."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.films import config, contents
from support.videos import write_video

import datasets.prepare.run
import datasets.prepare.shard_output
from datasets.media.container import MediaSettings
from datasets.prepare.encode import Encoded, Encoder, Work
from datasets.prepare.labels import LabelFileError
from datasets.prepare.resume import PrepareError
from datasets.prepare.run import PrepareConfig, main, prepare
from datasets.shards.manifest import ShardIndex
from datasets.shards.tar import ShardError


def samples(folder: Path) -> list[dict]:
    """All samples as WebDataset gives them: ``__key__`` and members by suffix."""
    found: dict[str, dict] = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                data = tar.extractfile(member)
                assert data is not None
                found.setdefault(key, {"__key__": key})[suffix] = data.read()
    return list(found.values())


def rejects(folder: Path, column: str) -> dict[str, str]:
    with (folder / "rejects.csv").open(newline="") as file:
        return {row["source"]: row[column] for row in csv.DictReader(file)}


def reject_reasons(folder: Path) -> dict[str, str]:
    return rejects(folder, "reason")


# What comes out


def test_samples_and_index(films: Path, prepared_films: Path):
    index = ShardIndex.load(prepared_films)
    assert [(label.name, label.count) for label in index.labels] == [("cat", 4), ("dog", 4), ("owl", 4)]
    assert index.samples == 12
    assert len(index.shards) > 2
    assert index.rejects is not None
    assert index.rejects.counts == {}
    assert index.fbank is not None
    assert index.fbank.clips == 12
    assert index.settings["media"]["num_frames"] == 3
    found = samples(prepared_films)
    assert len(found) == 12
    assert len({sample["__key__"] for sample in found}) == 12
    assert sum(json.loads(s["json"])["duration"] for s in found) == pytest.approx(index.duration_seconds)
    for sample in found:
        assert list(sample)[-4:] == ["flac", "00.jpg", "01.jpg", "02.jpg"]
        metadata = json.loads(sample["json"])
        assert list(metadata) == ["id", "labels", "start", "duration", "frame_times", "source"]
        assert metadata["labels"] == [metadata["source"].split("/")[0]]
        assert metadata["id"] == metadata["source"].removesuffix(".mp4")
        number = int(metadata["id"][9:11])
        seconds = 0.8 + 0.1 * (number % 4)
        assert metadata["duration"] == pytest.approx(seconds, abs=0.07)  # AAC ends in whole blocks
        assert metadata["frame_times"] == sorted(set(metadata["frame_times"]))
        waveform, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        assert (waveform.ndim, rate, len(waveform)) == (1, 16000, round(metadata["duration"] * 16000))
        spectrum = abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
        assert spectrum.argmax() * rate / len(waveform) == pytest.approx(200 + 50 * number, abs=3)
        assert Image.open(io.BytesIO(sample["01.jpg"])).size == (48, 32)  # never enlarged


def test_order_is_mixed_but_fixed(films: Path, prepared_films: Path, tmp_path: Path):
    labels = [json.loads(sample["json"])["labels"][0] for sample in samples(prepared_films)]
    assert labels != sorted(labels)
    prepare(config(films, tmp_path / "plain", folders_as_classes=True, shuffle=False))
    labels = [json.loads(sample["json"])["labels"][0] for sample in samples(tmp_path / "plain")]
    assert labels == sorted(labels)


def test_workers_do_not_matter(films: Path, prepared_films: Path, tmp_path: Path):
    prepare(config(films, tmp_path / "set", folders_as_classes=True, num_workers=2))
    assert contents(tmp_path / "set") == contents(prepared_films)


def test_wav_and_long_videos_in_pieces(tmp_path: Path):
    write_video(tmp_path / "in" / "long.mp4", seconds=2.6)
    write_video(tmp_path / "in" / "short.mp4", seconds=1.2)
    media = MediaSettings(num_frames=2, shorter_side=16)
    settings = {"clip_seconds": 1.0, "audio_format": "wav", "media": media, "shuffle": False}
    prepare(config(tmp_path / "in", tmp_path / "out", **settings))
    index = ShardIndex.load(tmp_path / "out")
    assert [shard.samples for shard in index.shards] == [2, 2]  # a video may end in another shard
    assert index.fbank is not None
    assert index.fbank.clips == 4
    found = samples(tmp_path / "out")
    metadata = [json.loads(sample["json"]) for sample in found]
    assert [m["id"] for m in metadata] == ["long_0.000", "long_1.000", "long_2.000", "short"]
    assert [m["start"] for m in metadata] == [0.0, 1.0, 2.0, 0.0]
    assert [m["duration"] for m in metadata] == [1.0, 1.0, pytest.approx(0.6, abs=0.07), 1.0]
    waveform, rate = soundfile.read(io.BytesIO(found[1]["wav"]), dtype="int16")
    assert (len(waveform), rate) == (16000, 16000)
    assert Image.open(io.BytesIO(found[0]["00.jpg"])).size == (24, 16)


def test_text_file_of_paths(films: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    names = ["dog/clip.01-x_.mp4", str(films / "cat/clip.00-x_.mp4"), "gone.mp4", str(tmp_path / "pipe.mp4")]
    (films / "list.txt").write_text("\n".join(names) + "\n\n")
    prepare(config(films / "list.txt", tmp_path / "out"))
    assert ShardIndex.load(tmp_path / "out").samples == 2
    assert ShardIndex.load(tmp_path / "out").labels == ()
    assert reject_reasons(tmp_path / "out") == dict.fromkeys(names[2:], "file_missing")
    assert rejects(tmp_path / "out", "detail") == {
        names[2]: "No such file or directory",
        names[3]: "it is no regular file",
    }


def test_segments_of_whole_videos_and_of_cut_clips(tmp_path: Path):
    (tmp_path / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/1,"A, b"\n1,/m/2,C\n')
    rows = ['-a_b.c, 0.500, 1.500, "/m/1"', '--uncut, 0.500, 1.500, "/m/2,/m/1"', 'gone, 30.0, 40.0, "/m/1"']
    rows += ['tooEarly, 30.000, 31.000, "/m/2"']
    (tmp_path / "eval.csv").write_text(
        "# YTID, start_seconds, end_seconds, positive_labels\n" + "\n".join(rows)
    )
    write_video(tmp_path / "in" / "-a_b.c_0.500.mp4", seconds=1.1)  # cut: read from its beginning
    write_video(tmp_path / "in" / "--uncut.mp4", seconds=3.0)
    write_video(tmp_path / "in" / "tooEarly.mp4", seconds=3.0)  # a video that ends before its segment
    prepare(config(tmp_path / "in", tmp_path / "out", labels=str(tmp_path / "eval.csv"), shuffle=False))
    index = ShardIndex.load(tmp_path / "out")
    assert [(label.name, label.mid, label.count) for label in index.labels] == [
        ("A, b", "/m/1", 2),
        ("C", "/m/2", 1),
    ]
    found = {m["id"]: m for m in (json.loads(sample["json"]) for sample in samples(tmp_path / "out"))}
    assert found.keys() == {"-a_b.c_0.500", "--uncut_0.500"}
    assert all(m["start"] == 0.5 and m["duration"] == 1.0 for m in found.values())
    assert found["--uncut_0.500"]["labels"] == ["A, b", "C"]
    assert reject_reasons(tmp_path / "out") == {"gone_30.000": "file_missing", "tooEarly.mp4": "outside"}


def test_splits(films: Path, tmp_path: Path):
    lines = [f"{path.relative_to(films)},{path.parent.name}" for path in sorted(films.rglob("*.mp4"))]
    rows = [f"{line},{'val' if i % 4 == 0 else 'train'}" for i, line in enumerate(lines[:-1])]
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,split\n" + "\n".join([*rows, "no/where.mp4,cat,test"]) + "\n")
    first = config(films, tmp_path / "out", labels=str(labels), split="val")
    assert prepare(first) == [tmp_path / "out" / "val"]
    assert not (tmp_path / "out" / "train").exists()
    folders = prepare(config(films, tmp_path / "out", labels=str(labels)))
    assert [folder.name for folder in folders] == ["train", "val"]  # of test nothing could be found
    assert [ShardIndex.load(folder).samples for folder in folders] == [8, 3]
    assert [[label.name for label in ShardIndex.load(folder).labels] for folder in folders] == [
        ["cat", "dog", "owl"]
    ] * 2
    assert reject_reasons(tmp_path / "out" / "test") == {"no/where.mp4": "file_missing"}
    assert list(reject_reasons(tmp_path / "out").values()) == ["label_unknown"]
    with pytest.raises(
        PrepareError, match=r"'dev' is not in .*labels.csv; its splits: \['test', 'train', 'val'\]"
    ):
        prepare(config(films, tmp_path / "other", labels=str(labels), split="dev"))


def test_names_of_other_times_and_single_videos(films: Path, tmp_path: Path):
    source = write_video(tmp_path / "in" / "a.mp4").parent
    old = os.fsencode(source) + b"/old \xff.mp4"
    shutil.copyfile(source / "a.mp4", old)
    prepare(config(source, tmp_path / "out"))
    names = [json.loads(sample["json"])["source"] for sample in samples(tmp_path / "out")]
    assert sorted(names) == ["a.mp4", r"old \xff.mp4"]
    labels = Path(os.fsdecode(os.fsencode(tmp_path) + b"/set \xff.csv"))
    labels.write_text("path,label\na.mp4,x\n")
    prepare(config(source, tmp_path / "labelled", labels=str(labels)))
    assert ShardIndex.load(tmp_path / "labelled").settings["labels"].endswith(r"set \xff.csv")
    assert reject_reasons(tmp_path / "labelled") == {r"old \xff.mp4": "label_unknown"}
    prepare(config(source / "a.mp4", tmp_path / "one"))
    assert ShardIndex.load(tmp_path / "one").samples == 1


def test_manifest_as_source(films: Path, tmp_path: Path):
    (films / "set.csv").write_text("path,label\ncat/clip.00-x_.mp4,x\ndog/clip.01-x_.mp4,y\n")
    prepare(config(films / "set.csv", tmp_path / "out"))
    assert [label.count for label in ShardIndex.load(tmp_path / "out").labels] == [1, 1]


# Rejects


def test_every_reject_has_its_reason(tmp_path: Path):
    folder = tmp_path / "in"
    write_video(folder / "good.mp4")
    write_video(folder / "no_sound.mp4", sound_seconds=0)
    write_video(folder / "no_picture.mp4", seconds=0, sound_seconds=1)
    write_video(folder / "quiet.mp4", level=0)
    write_video(folder / "brief.mp4", seconds=0.3)
    (folder / "text.mp4").write_text("not a film at all, " * 100)
    (folder / "empty.mp4").touch()
    whole = write_video(tmp_path / "long.mp4", seconds=3.0).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    write_video(folder / "good.mkv")
    prepare(config(folder, tmp_path / "out"))
    expected = {
        "no_sound.mp4": "no_audio",
        "no_picture.mp4": "no_video",
        "quiet.mp4": "silent",
        "brief.mp4": "too_short",
        "text.mp4": "undecodable",
        "empty.mp4": "undecodable",
        "cut.mp4": "truncated",
        "dangling.mp4": "file_missing",
        "good.mp4": "duplicate_id",  # of good.mkv
    }
    assert reject_reasons(tmp_path / "out") == expected
    index = ShardIndex.load(tmp_path / "out")
    assert index.rejects is not None
    assert index.rejects.counts == Counter(expected.values())
    assert index.samples == 1
    prepare(config(folder, tmp_path / "kept", keep_truncated=True))
    ids = {json.loads(sample["json"])["id"] for sample in samples(tmp_path / "kept")}
    assert ids == {"good", "cut"}


def test_nothing_usable(tmp_path: Path):
    write_video(tmp_path / "in" / "quiet.mp4", level=0)
    with pytest.raises(PrepareError, match=r"no clip of .* could be used"):
        prepare(config(tmp_path / "in", tmp_path / "out"))
    assert reject_reasons(tmp_path / "out") == {"quiet.mp4": "silent"}
    with pytest.raises(ShardError):
        ShardIndex.load(tmp_path / "out")


def test_users_mistakes(films: Path, tmp_path: Path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PrepareError, match="no video files"):
        prepare(config(tmp_path / "nothing", tmp_path / "out"))
    with pytest.raises(PrepareError, match="does not exist"):
        prepare(config(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "vgg.csv").write_text("abc,1,x,train\ndef,2,y,train\n")
    with pytest.raises(LabelFileError, match=r"'abc', 'def'.*clip"):
        prepare(config(films, tmp_path / "out", labels=str(tmp_path / "vgg.csv")))
    with pytest.raises(PrepareError, match="Give the folder of videos as SOURCE"):
        prepare(config(tmp_path / "vgg.csv", tmp_path / "out"))
    with pytest.raises(ValueError, match="two sources of labels"):
        config(films, tmp_path / "out", labels="x.csv", folders_as_classes=True)
    (tmp_path / "films.zip").write_bytes(b"PK\3\4\0\0")
    with pytest.raises(PrepareError, match="neither a video"):
        prepare(config(tmp_path / "films.zip", tmp_path / "out"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.tar").touch()
    with pytest.raises(PrepareError, match=r"mine\.tar already, but no index"):
        prepare(config(films, tmp_path / "full"))
    assert not (tmp_path / "out").exists()


def test_command_line(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([str(films), str(tmp_path / "out"), "--media.num_framez", "3"])
    assert "num_framez" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(films), str(tmp_path / "out"), "--min_second=0.5"])
    assert "--min_second" in capsys.readouterr().err  # no abbreviations
    with pytest.raises(SystemExit):
        main([str(films), str(tmp_path / "out"), "--jpeg_quality=100"])
    assert "jpeg_quality must be 1 to 95, got 100" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"datasets\.prepare: .*does not exist"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "out")])
    main([str(films), str(tmp_path / "out"), "--num_workers=1", "--media.num_frames=2", "--min_seconds=0.5"])
    assert f"{tmp_path / 'out'}: 12 clips" in capsys.readouterr().out


class FatalEncoder(Encoder):
    """Its process dies of one file and never comes back from another, as happens with native decoders."""

    def __call__(self, work: Work) -> Encoded:
        if "00-x_" in work.task.source:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "01-x_" in work.task.source:
            time.sleep(60)
        return super().__call__(work)


def test_files_that_end_or_hold_up_their_decoder_are_rejects(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.prepare.run, "Encoder", FatalEncoder)
    prepare(config(films, tmp_path / "out", num_workers=2, timeout_seconds=5.0))
    reasons = reject_reasons(tmp_path / "out")
    assert reasons == {"cat/clip.00-x_.mp4": "worker_died", "dog/clip.01-x_.mp4": "timed_out"}
    index = ShardIndex.load(tmp_path / "out")
    assert index.samples == 10
    assert rejects(tmp_path / "out", "detail") == {
        "cat/clip.00-x_.mp4": "the process that decoded it ended with SIGSEGV, twice",
        "dog/clip.01-x_.mp4": "took more than 5 s",
    }


@pytest.mark.skipif("EARSIGHT_CLIPS" not in os.environ, reason="EARSIGHT_CLIPS names no folder of real clips")
def test_real_clips(tmp_path: Path):
    prepare(PrepareConfig(source=os.environ["EARSIGHT_CLIPS"], out=str(tmp_path / "out"), num_workers=2))
    found = {m["id"]: m for m in (json.loads(sample["json"]) for sample in samples(tmp_path / "out"))}
    assert reject_reasons(tmp_path / "out") == {"bikes.mp4": "no_audio"}
    assert found["KlsG1EnBEjc_000361"]["duration"] == 10.0  # its picture goes on for 10.04 s
    assert found["bigbuckbunny"]["duration"] == pytest.approx(5.3, abs=0.1)
    assert all(len(metadata["frame_times"]) == 10 for metadata in found.values())
