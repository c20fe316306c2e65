"""Text beside sound and frames, from a manifest's column to the batch; and clips that lack some of these."""

from pathlib import Path

import pytest
import torch
from support.films import config
from support.videos import write_video

from datasets.batch import AVBatch, Clip, ReadFailure, Ticket, collate
from datasets.check import check_set
from datasets.index import index_folder
from datasets.loading.frames import EvenFrames, all_frames
from datasets.loading.loader import ClipNeeds, DataConfig, TrainShare, evaluation_loader, train_loader
from datasets.loading.reader import ClipReader
from datasets.media.container import MediaSettings
from datasets.prepare.labels import LabelFileError
from datasets.prepare.resume import PrepareError
from datasets.prepare.run import prepare
from datasets.shards.manifest import Label, ShardIndex, label_tasks
from datasets.shards.scan import scan_shard
from datasets.shards.tar import ShardError
from datasets.stats import main as stats

TEXTS = {"a": "Früh übt sich, “wer” …", "b": "one, two\nthree", "c": None}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Three videos, one of 2.5 s, and two rows without a video, one of which has a text."""
    root = tmp_path_factory.mktemp("videos")
    for name, seconds in (("a", 2.5), ("b", 0.5), ("c", 0.5)):
        write_video(root / f"{name}.mp4", seconds=seconds)
    rows = ["path,text,label.emotion,label.sentiment"]
    rows += [
        f'a.mp4,"{TEXTS["a"]}",joy,positive',
        f'b.mp4,"{TEXTS["b"]}",neutral,neutral',
        "c.mp4,,neutral;joy,positive",
        "gone.mp4,never filmed,anger,negative",
        "lost.mp4,,anger,negative",
    ]
    (root / "rows.csv").write_text("\n".join(rows), encoding="utf-8")
    return root / "rows.csv"


def settings(manifest: Path, out: Path, **options):
    return config(manifest, out, clip_seconds=1.0, min_seconds=0.1, shuffle=False, **options)


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory) -> Path:
    return prepare(settings(manifest, tmp_path_factory.mktemp("out") / "whole"))[0]


@pytest.fixture(scope="module")
def partial(manifest, tmp_path_factory) -> Path:
    return prepare(settings(manifest, tmp_path_factory.mktemp("out") / "partial", partial=True))[0]


def test_text_and_labels_of_several_tasks_in_shards(whole):
    index = ShardIndex.load(whole)
    names = ["emotion:anger", "emotion:joy", "emotion:neutral"]
    names += ["sentiment:negative", "sentiment:neutral", "sentiment:positive"]
    assert [label.name for label in index.labels] == names
    assert [label.count for label in index.labels] == [0, 2, 2, 0, 1, 2]
    assert label_tasks(index.labels) == {"emotion": [0, 1, 2], "sentiment": [3, 4, 5]}
    assert label_tasks([Label("dog"), Label("mood:sad")]) == {"": [0], "mood": [1]}
    assert index.rejects is not None
    assert index.rejects.counts == {"file_missing": 2}
    assert "partial" not in index.settings
    samples = [sample for shard in index.shards for sample in scan_shard(whole / shard.name).samples]
    assert [list(sample.members)[:3] for sample in samples[:2]] == [["json", "txt", "flac"]] * 2
    # A file whose text is known is one clip, however long; others are cut as ever.
    assert [sample.metadata["id"] for sample in samples] == ["a", "b", "c"]
    assert samples[0].metadata["duration"] > 2.4
    assert check_set(whole, fast=False, num_workers=1).problems == []


def batch_of(folder: Path, **options) -> AVBatch:
    reader = ClipReader(folder, image_size=16, substitutes=False, **options)
    return collate([reader.read(Ticket(row, 0)) for row in range(len(reader))], 40_000, 6)


def test_text_on_the_batch(whole):
    batch = batch_of(whole, text=True)
    assert dict(zip(batch.ids, batch.text or [], strict=True)) == TEXTS
    assert batch.labels is not None
    assert [row.nonzero().flatten().tolist() for row in batch.labels] == [[1, 5], [2, 4], [1, 2, 5]]
    assert batch.first(2).text == [TEXTS["a"], TEXTS["b"]]
    assert batch_of(whole).text == [None] * 3  # nobody asked
    alone = batch_of(whole, text=True, audio=False, choose_frames=None)
    assert (alone.text, alone.waveform, alone.frames) == (list(TEXTS.values()), None, None)
    needs = ClipNeeds(text=True, image_size=16)
    loader = train_loader(DataConfig(str(whole), num_workers=1), needs, TrainShare(0, 3, num_steps=1))
    (batch,) = loader
    assert batch.text == [TEXTS[name] for name in batch.ids]


def test_rows_without_a_usable_video_are_kept_where_asked(partial, capsys):
    index = ShardIndex.load(partial)
    assert index.rejects is not None
    assert index.rejects.counts == {"file_missing": 1}  # of which no text is known either
    assert index.samples == 4
    assert index.labels[0].count == 1
    assert index.settings["partial"] is True
    kept = scan_shard(partial / index.shards[-1].name).samples[-1]
    assert list(kept.members) == ["json", "txt"]
    assert kept.metadata["absent"] == {"sound": "file_missing", "frames": "file_missing"}
    assert kept.metadata["duration"] == 0.0
    assert check_set(partial, fast=False, num_workers=1).problems == []
    stats([str(partial)])
    printed = capsys.readouterr().out
    assert "clips with sound 3, frames 3, text 3\n" in printed
    assert "not known" not in printed
    assert index_folder(partial, earlier=index).fingerprint == index.fingerprint


def test_what_a_video_lacks_costs_the_rest_of_it_nothing(tmp_path: Path):
    write_video(tmp_path / "mute.mp4", seconds=0.6, sound_seconds=0.0)
    write_video(tmp_path / "still.mp4", seconds=0.6, level=0.0)
    write_video(tmp_path / "brief.mp4", seconds=0.6, sound_seconds=0.05)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "still.mp4").read_bytes()[:400])
    names = ("broken", "brief", "mute", "still")
    (tmp_path / "rows.csv").write_text("path,text\n" + "".join(f"{name}.mp4,{name}\n" for name in names))
    options = {"min_seconds": 0.1, "shuffle": False, "media": MediaSettings(num_frames=3)}
    with pytest.raises(PrepareError, match="no clip"):
        prepare(config(tmp_path / "rows.csv", tmp_path / "whole", **options))
    (folder,) = prepare(config(tmp_path / "rows.csv", tmp_path / "kept", partial=True, **options))
    assert check_set(folder, fast=False, num_workers=1).problems == []
    samples = scan_shard(folder / "shard-000000.tar").samples
    pictures = ["00.jpg", "01.jpg", "02.jpg"]
    members = {"broken": [], "brief": ["flac", *pictures], "mute": pictures, "still": ["flac", *pictures]}
    kept = {
        sample.metadata["id"]: [m for m in sample.members if m not in ("json", "txt")] for sample in samples
    }
    assert kept == members
    absent = {sample.metadata["id"]: sample.metadata.get("absent") for sample in samples}
    assert absent == {
        "broken": {"sound": "undecodable", "frames": "undecodable"},
        "brief": None,
        "mute": {"sound": "no_audio"},
        "still": None,
    }
    batch = batch_of(folder, text=True, partial=True, choose_frames=all_frames)
    assert batch.num_samples is not None
    assert batch.num_stored is not None
    assert [count > 0 for count in batch.num_samples.tolist()] == [False, True, False, True]
    assert batch.num_stored.tolist() == [0, 3, 3, 3]
    assert ShardIndex.load(folder).fbank is None  # of a sound that would be rejected nothing is learned


@pytest.mark.parametrize(("choice", "count"), [(EvenFrames(2), 2), (all_frames, 3)])
def test_what_a_clip_lacks_is_of_length_0(partial, choice, count):
    batch = batch_of(partial, text=True, partial=True, choose_frames=choice)
    assert batch.ids[3] == "gone"
    assert batch.text is not None
    assert batch.text[3] == "never filmed"
    assert batch.num_samples is not None
    assert batch.num_samples.tolist()[3] == 0
    assert min(batch.num_samples.tolist()[:3]) > 0
    assert batch.num_stored is not None
    assert batch.num_stored.tolist() == [3, 3, 3, 0]
    assert batch.frames is not None
    assert batch.frames.shape == (4, count, 3, 16, 16)
    assert not batch.frames[3].any()
    assert batch.frame_times is not None
    assert batch.frame_times[3].isnan().all()
    assert not batch.frame_times[:3].isnan().any()


def test_a_batch_of_nothing_but_text_has_the_shapes_of_any_other(partial):
    needs = ClipNeeds(text=True, partial=True, image_size=16, num_samples=500)
    loader = evaluation_loader(DataConfig(str(partial), num_workers=0), partial, needs, batch_size=3)
    first, last = list(loader)
    for name in ("waveform", "num_samples", "frames", "num_stored", "frame_index", "labels"):
        one, other = getattr(first, name), getattr(last, name)
        assert (one.shape[1:], one.dtype) == (other.shape[1:], other.dtype), name
    assert isinstance(last.frames, torch.Tensor)


def test_a_clip_that_lacks_something_is_a_bad_clip_elsewhere(partial):
    reader = ClipReader(partial, image_size=16, text=True, substitutes=False)
    failure = reader.read(Ticket(3, 0))
    assert isinstance(failure, ReadFailure)
    assert failure.reason == "the sample has no sound and no frames"
    # Nor is one of use that has nothing of what is asked for.
    reader = ClipReader(partial, image_size=16, partial=True, substitutes=False)
    failure = reader.read(Ticket(3, 0))
    assert isinstance(failure, ReadFailure)
    assert failure.reason == "the sample has nothing of what is asked for"
    assert isinstance(reader.read(Ticket(2, 0)), Clip)


def test_text_that_is_no_utf8(manifest, whole, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_bytes(b"path,text\n" + str(manifest.parent / "a.mp4").encode() + b",can\x92t\n")
    with pytest.raises((LabelFileError, PrepareError), match=r"rows.csv: the text b'can.x92t' is no UTF-8"):
        prepare(settings(rows, tmp_path / "out"))
    copy = tmp_path / "set"
    copy.mkdir()
    for file in whole.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes().replace("Früh".encode(), b"Fr\xff\xffh"))
    failure = ClipReader(copy, text=True, image_size=16, substitutes=False).read(Ticket(0, 0))
    assert isinstance(failure, ReadFailure)
    assert failure.reason == "text is no UTF-8: invalid start byte at byte 2"
    problems = check_set(copy, fast=False, num_workers=1).problems
    assert any("text is no UTF-8" in problem for problem in problems)


def test_a_set_without_text(manifest, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text(f"path\n{manifest.parent / 'b.mp4'}\n")
    (folder,) = prepare(settings(rows, tmp_path / "out"))
    with pytest.raises(ShardError, match="has text"):
        ClipReader(folder, text=True)
    assert batch_of(folder, text=True, partial=True).text == [None]
