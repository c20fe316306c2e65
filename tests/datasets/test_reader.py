import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.shards import encode_flac, encode_jpeg, make_picture, make_sample, make_shards, make_waveform
from support.videos import write_video

from datasets.batch import Clip, FailureBudget, ReadFailure, Ticket, TooManyFailuresError, collate
from datasets.index import build_table, index_folder
from datasets.loading.plan import substitute_row
from datasets.loading.reader import ClipReader, UnreadableClipsError, all_frames, middle_frame, random_frame
from datasets.shards.manifest import ShardIndex
from datasets.shards.table import ClipTable
from datasets.shards.tar import Sample, ShardError, ShardWriter


def read(reader: ClipReader, row: int, seed: int = 0) -> Clip:
    clip = reader.read(Ticket(row, seed))
    assert isinstance(clip, Clip)
    return clip


def mean_colour(frames: torch.Tensor | None) -> list[list[int]]:
    assert frames is not None
    return frames[:, :2].float().mean(dim=(2, 3)).round().int().tolist()


def write_set(folder: Path, samples: list[Sample]) -> Path:
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for sample in samples:
            writer.write(sample)
    index = ShardIndex((writer.close(),))
    index.save(folder)
    build_table(folder, index)
    return folder


def damage(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


# Reading


def test_every_clip_is_read_as_it_was_written(tmp_path):
    reader = ClipReader(make_shards(tmp_path, 7, 3, frames=3), choose_frames=all_frames, image_size=32)
    for row in (6, 0, 3, 5):
        clip = read(reader, row)
        assert (clip.id, clip.row, clip.labels, clip.failures) == (f"clip-{row:05d}", row, (row % 3,), ())
        assert clip.waveform is not None
        np.testing.assert_array_equal(clip.waveform.numpy(), make_waveform(row, 1.0))
        assert clip.frames is not None
        assert (clip.frames.shape, clip.frames.dtype) == ((3, 3, 32, 32), torch.uint8)
        expected = np.array([[(row * 37) % 256, frame * 23] for frame in range(3)])
        assert np.abs(np.array(mean_colour(clip.frames)) - expected).max() <= 3


def test_frame_choices(tmp_path):
    assert [middle_frame(n, 0) for n in (1, 9, 10)] == [(0,), (4,), (5,)]
    assert list(all_frames(3, 0)) == [0, 1, 2]
    counts = np.bincount([random_frame(10, seed)[0] for seed in range(2000)], minlength=10)
    assert counts.min() > 150
    reader = ClipReader(make_shards(tmp_path, 2, 2, frames=10), image_size=16)
    for seed in range(5):
        assert abs(mean_colour(read(reader, 0, seed).frames)[0][1] - 23 * random_frame(10, seed)[0]) <= 3


def test_only_the_members_in_use_are_read(tmp_path, monkeypatch):
    folder = make_shards(tmp_path, 2, 2, frames=10)
    table = ClipTable.open(folder)
    spans = []
    preadv = os.preadv

    def spy(descriptor, buffers, offset):
        spans.append((offset, sum(map(len, buffers))))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr("os.preadv", spy)
    ClipReader(folder, choose_frames=middle_frame, image_size=16)._decode(1, 0)
    wanted = [table.members(1)[slot] for slot in (table.audio_slots[0], table.frame_slots[5])]
    assert spans == [(extent.offset, (extent.blocks + 1) * 512) for extent in wanted]
    spans.clear()
    assert ClipReader(folder, choose_frames=None)._decode(1, 0).frames is None
    assert ClipReader(folder, audio=False, image_size=16)._decode(1, 0).waveform is None
    assert len(spans) == 2


def test_a_reader_travels_to_another_process(tmp_path):
    reader = ClipReader(make_shards(tmp_path, 4, 2), image_size=16)
    first = read(reader, 3)
    again = read(pickle.loads(pickle.dumps(reader)), 3)
    assert first.waveform is not None
    assert again.waveform is not None
    assert first.waveform.equal(again.waveform)


def test_a_reader_keeps_few_shards_open(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.loading.reader._MAX_OPEN_SHARDS", 3)
    reader = ClipReader(make_shards(tmp_path, 8, 1), choose_frames=None)
    for row in (0, 1, 2, 0, 3, 4, 0, 5, 6, 7, 0):
        assert read(reader, row).row == row
        assert len(reader._open) <= 3
    reader.close()
    assert not reader._open


# What cannot be read


def bad_set(tmp_path: Path) -> Path:
    samples = [make_sample(i, num_classes=0) for i in range(8)]
    members = dict(samples[2].members)
    samples[2] = Sample("no-sound", {"id": "no sound"}, [(k, v) for k, v in members.items() if k != "flac"])
    broken = [("flac", members["flac"]), ("00.jpg", b"no jpeg"), ("01.jpg", members["01.jpg"][:300])]
    samples[5] = Sample("no-picture", {"id": "no picture"}, broken)
    return write_set(tmp_path, samples)


def test_the_place_of_a_bad_clip_is_taken_by_the_one_the_plan_names(tmp_path):
    reader = ClipReader(bad_set(tmp_path), image_size=16)
    for row, reason in ((2, "the sample has no sound"), (5, "picture can't be decoded")):
        seeds = [seed for seed in range(40) if substitute_row(seed, 1, 8) not in (2, 5)]
        for seed in seeds[:4]:
            clip = read(reader, row, seed)
            assert clip.row == substitute_row(seed, 1, 8)
            assert clip.id == f"clip-{clip.row:05d}"
            assert clip.seed == seed
            (failure,) = clip.failures
            assert (failure.id, failure.shard) == (reader.table.id(row), "shard-000000.tar")
            assert failure.reason.startswith(reason)
        twice = next(seed for seed in range(99) if substitute_row(seed, 1, 8) in (2, 5))
        assert len(read(reader, row, twice).failures) >= 2


def test_an_evaluation_leaves_bad_clips_out_and_reports_them(tmp_path):
    reader = ClipReader(bad_set(tmp_path), image_size=16, substitutes=False)
    items = reader.__getitems__([Ticket(row, 0) for row in range(8)])
    batch = collate(items, 16_000, 0)
    assert batch.ids == [f"clip-{row:05d}" for row in range(8) if row not in (2, 5)]
    assert [failure.id for failure in batch.failures] == ["no sound", "no picture"]
    empty = collate([item for item in items if isinstance(item, ReadFailure)], 16_000, 3)
    assert len(empty) == 0
    assert empty.frames is None
    assert len(empty.failures) == 2
    assert empty.labels is not None
    assert empty.labels.shape == (0, 3)


def test_what_is_not_asked_for_is_no_failure(tmp_path):
    folder = bad_set(tmp_path)
    assert not read(ClipReader(folder, choose_frames=None), 5).failures
    assert not read(ClipReader(folder, audio=False, image_size=16), 2).failures


def test_a_set_of_nothing_but_bad_clips_stops(tmp_path):
    samples = [Sample(f"k{i}", {"id": f"bad {i}"}, [("flac", b"no sound")]) for i in range(4)]
    reader = ClipReader(write_set(tmp_path, samples), choose_frames=None)
    with pytest.raises(
        UnreadableClipsError, match=r"8 clips one after the other can't be read: bad 1 in shard-000000"
    ):
        reader.read(Ticket(1, 0))


def test_sets_that_lack_what_is_asked_for_are_refused(tmp_path):
    folder = write_set(tmp_path, [Sample("k", {}, [("flac", encode_flac(make_waveform(0, 0.1)))])])
    with pytest.raises(ShardError, match=r"no clip of .* has frames"):
        ClipReader(folder)
    with pytest.raises(ValueError, match="sound, frames or text"):
        ClipReader(folder, audio=False, choose_frames=None)


def test_damaged_headers_and_exchanged_samples_of_equal_size_are_found(tmp_path):
    folder = make_shards(tmp_path, 6, 6)
    path = folder / "shard-000000.tar"
    whole = path.read_bytes()
    table = ClipTable.open(folder)
    sound = table.members(2)[1]

    def failure(row: int = 2) -> str:
        item = ClipReader(folder, image_size=16, substitutes=False).read(Ticket(row, 0))
        assert isinstance(item, ReadFailure)
        assert item.id == f"clip-{row:05d}"
        return item.reason

    damage(path, sound.offset + 130, b"\x07")
    assert "the tar header of flac is damaged" in failure()
    path.write_bytes(whole)
    with tarfile.open(path) as tar:  # another shard of the same size: two samples have exchanged their names
        renamed = tarfile.TarInfo("clip-00009.flac")
        renamed.size, renamed.mode = tar.getmember("clip-00002.flac").size, 0o444
        damage(path, sound.offset, renamed.tobuf(tarfile.USTAR_FORMAT))
    assert failure() == "the shard holds 'clip-00009.flac' where this clip's flac should be"
    path.write_bytes(whole)
    longer = tarfile.TarInfo("clip-00002.flac")
    longer.size = sound.blocks * 512 + 1
    damage(path, sound.offset, longer.tobuf(tarfile.USTAR_FORMAT))
    assert "blocks of the table" in failure()
    path.write_bytes(whole)
    damage(path, sound.offset + 512, bytes(200))
    assert "sound" in failure()
    path.write_bytes(whole)
    assert isinstance(ClipReader(folder, image_size=16, substitutes=False).read(Ticket(2, 0)), Clip)


def test_missing_and_cut_shards_are_errors_before_reading_begins(tmp_path):
    folder = make_shards(tmp_path, 6, 2)
    path = folder / "shard-000002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(
        ShardError, match=rf"shard-000002.tar has {len(whole) - 1000} bytes, the index says {len(whole)}"
    ):
        ClipReader(folder)
    path.unlink()
    with pytest.raises(ShardError, match=r"shard-000002.tar is in the index but can't be opened"):
        ClipReader(folder)


def test_a_shard_that_is_cut_or_goes_during_a_run_is_an_error(tmp_path):
    folder = make_shards(tmp_path, 6, 2)
    reader = ClipReader(folder, image_size=16)
    read(reader, 0)
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ShardError, match=r"shard-000001.tar has 5000 bytes"):
        reader.read(Ticket(2, 0))
    path = folder / "shard-000000.tar"  # open already: what is left of it is read
    path.write_bytes(path.read_bytes()[:5000])
    assert [
        failure.id for failure in read(ClipReader.__new__(ClipReader) if False else reader, 4).failures
    ] == []
    seed = next(seed for seed in range(99) if substitute_row(seed, 1, 6) in (4, 5))
    assert "the shard ends inside" in read(reader, 0, seed).failures[0].reason


def test_a_stale_table_is_refused(tmp_path):
    folder = make_shards(tmp_path, 6, 2)
    index = ShardIndex.load(folder)
    ShardIndex(index.shards, index.labels[:2]).save(folder)
    with pytest.raises(ShardError, match=r"index.table belongs to another state of index.json"):
        ClipReader(folder)


def test_shards_made_elsewhere_are_read(tmp_path):
    flac, jpeg = encode_flac(make_waveform(4, 0.3)), encode_jpeg(make_picture(4, 0, (48, 32)))
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in {
            "d/a.jpg": jpeg,
            "d/a.note": b"x" * 700,
            "d/a.FLAC": flac,
            "b.flac": flac,
            "b.png": b"?",
        }.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 0.5
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(long := tarfile.TarInfo("é" * 120 + ".flac"))
        assert long.size == 0
    index_folder(tmp_path)
    reader = ClipReader(tmp_path, image_size=16, substitutes=False)
    clip = read(reader, 0)
    assert clip.waveform is not None
    np.testing.assert_array_equal(clip.waveform.numpy(), make_waveform(4, 0.3))
    assert mean_colour(clip.frames)[0][0] == pytest.approx(148, abs=3)
    assert isinstance(reader.read(Ticket(1, 0)), ReadFailure)


def test_videos_in_shards_are_decoded_as_they_are_read(tmp_path):
    videos = {
        "a.mp4": write_video(tmp_path / "a.mp4", seconds=2.0).read_bytes(),
        "b.mp4": write_video(tmp_path / "b.mp4", seconds=1.0, sound_seconds=0.0).read_bytes(),
        "c.mp4": b"no video",
    }
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in videos.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_folder(tmp_path)
    reader = ClipReader(tmp_path, choose_frames=all_frames, image_size=16, substitutes=False)
    clip = read(reader, 0)
    assert clip.id == "x/a"
    assert clip.frames is not None
    assert clip.frames.shape == (10, 3, 16, 16)
    assert len({frame.numpy().tobytes() for frame in clip.frames}) > 5
    assert clip.waveform is not None
    assert len(clip.waveform) == pytest.approx(32_000, abs=2048)
    assert clip.waveform.float().std() > 3000
    chosen = read(ClipReader(tmp_path, choose_frames=middle_frame, image_size=16), 0)
    assert chosen.frames is not None
    assert chosen.frames[0].equal(clip.frames[5])
    assert read(ClipReader(tmp_path, choose_frames=None), 0).frames is None
    for row, reason in ((1, "no_audio"), (2, "undecodable")):
        failure = reader.read(Ticket(row, 0))
        assert isinstance(failure, ReadFailure)
        assert reason in failure.reason


# The budget


def failing(number: int, good: int, first: int = 0):
    failures = [ReadFailure(f"bad {first + i}", "s.tar", "why") for i in range(number)]
    return collate([*failures, *(Clip(f"{i}", i, 0, None, None) for i in range(good))], 1, 0)


def test_budget_counts_names_and_stops():
    budget = FailureBudget(0.01)
    assert [failure.id for failure in budget.count(failing(2, 8))] == ["bad 0", "bad 1"]
    assert budget.count(failing(2, 8)) == []  # named once
    assert (budget.seen, budget.failed) == (20, 4)
    budget.check()
    budget.count(failing(7, 3, first=10))
    with pytest.raises(TooManyFailuresError, match=r"11 of 30 clips .* bad 16 in s.tar: why"):
        budget.check()
    strict = FailureBudget(0.0)
    strict.count(failing(0, 8))
    strict.check()
    strict.count(failing(1, 8))
    with pytest.raises(TooManyFailuresError, match="1 of 17"):
        strict.check()


def test_budget_is_a_share_once_enough_was_seen():
    budget = FailureBudget(0.01, grace=100)
    for i in range(30):
        budget.count(failing(1, 99, first=i))
        budget.check()
    budget.count(failing(2, 98, first=50))
    with pytest.raises(TooManyFailuresError):
        budget.check()
