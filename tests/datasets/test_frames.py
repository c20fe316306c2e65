import json
from typing import Any

import numpy as np
import pytest
import torch
from support.shards import make_sample, make_shards
from support.videos import write_video

from datasets.batch import Clip, ReadFailure, Ticket, collate
from datasets.index import index_folder
from datasets.loading.frames import EvenFrames, all_frames, middle_frame, random_frame
from datasets.loading.loader import ClipNeeds, DataConfig, TrainShare, evaluation_loader, train_loader
from datasets.loading.reader import ClipReader
from datasets.shards.table import ClipTable, Column, write_table
from datasets.shards.tar import Sample, ShardError, ShardWriter


def write_set(folder, samples):
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder / "shard-000000.tar") as writer:
        for sample in samples:
            writer.write(sample)
    writer.close()
    index_folder(folder)
    return folder


def test_even_frames():
    assert EvenFrames(2)(10, 0) == [2, 7]
    assert EvenFrames(8)(8, 5) == list(range(8))
    assert EvenFrames(8)(16, 5) == list(range(1, 16, 2))
    for count in range(1, 17):
        for stored in range(count, 33):
            chosen = EvenFrames(count)(stored, 0)
            assert chosen == sorted(set(chosen))
            assert len(chosen) == count
            assert chosen[-1] == stored - 1 - chosen[0] or abs(chosen[-1] - (stored - 1 - chosen[0])) == 1
    assert EvenFrames(16, repeat=True)(10, 0) == [0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 9]
    assert EvenFrames(3, repeat=True)(1, 0) == [0, 0, 0]
    with pytest.raises(ValueError, match="at least 1, not 0"):
        EvenFrames(0)
    with pytest.raises(ValueError, match="has 7 frames, fewer than the 8 needed"):
        EvenFrames(8)(7, 0)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (EvenFrames(3), [[1, 3, 5]] * 4),
        (all_frames, [list(range(6))] * 4),
        (middle_frame, [[3]] * 4),
        (random_frame, None),
    ],
)
def test_a_batch_says_which_frames_it_holds_and_when_they_are_shown(tmp_path, choice, expected):
    folder = make_shards(tmp_path, 4, 2, seconds=1.2, frames=6)
    config = DataConfig(str(folder), num_workers=0)
    needs = ClipNeeds(train_frames=choice, image_size=16)
    loader = train_loader(config, needs, TrainShare(seed=1, global_batch_size=4, num_steps=1))
    batch: Any
    (batch,) = loader
    if expected is None:
        expected = [list(random_frame(6, seed)) for seed in batch.seeds.tolist()]
        assert len({tuple(row) for row in expected}) > 1
    assert batch.frame_index.dtype == torch.int64
    assert batch.frame_index.tolist() == expected
    assert batch.num_stored.tolist() == [6] * 4
    assert batch.frame_times.dtype == torch.float32
    np.testing.assert_allclose(batch.frame_times, (batch.frame_index.numpy() + 0.5) * 0.2, rtol=1e-6)
    greens = batch.frames[:, :, 1].float().mean(dim=(2, 3))
    assert ((greens - 23 * batch.frame_index).abs() <= 3).all()
    first = batch.first(2)
    assert len(first.frame_index) == len(first.num_stored) == len(first.frame_times) == 2


def test_even_frames_are_the_same_in_training_and_evaluation_whatever_the_seed(tmp_path):
    folder = make_shards(tmp_path, 4, 2, seconds=0.1, frames=5)
    config = DataConfig(str(folder), num_workers=0)
    needs = ClipNeeds(train_frames=EvenFrames(2), held_out_frames=EvenFrames(2), image_size=16)
    (held_out,) = evaluation_loader(config, folder, needs, batch_size=4)
    assert held_out.frames is not None
    for seed in (0, 1):
        (batch,) = train_loader(config, needs, TrainShare(seed, 4, num_steps=1))
        assert batch.frames is not None
        assert batch.frames.equal(held_out.frames[batch.rows])


def test_sets_with_too_few_frames_are_refused_before_anything_is_read(tmp_path):
    folder = make_shards(tmp_path, 2, 2, seconds=0.1, frames=3)
    with pytest.raises(
        ShardError, match=r"has 3 frames a clip, fewer than the 8 needed.*--media.num_frames 8"
    ):
        ClipReader(folder, choose_frames=EvenFrames(8))
    ClipReader(folder, choose_frames=EvenFrames(3))
    ClipReader(folder, choose_frames=EvenFrames(8, repeat=True))


def test_a_clip_with_too_few_frames_is_a_bad_clip(tmp_path):
    folder = write_set(tmp_path, [make_sample(0, frames=4), make_sample(1, frames=2)])
    reader = ClipReader(folder, choose_frames=EvenFrames(4), image_size=16, substitutes=False)
    assert isinstance(reader.read(Ticket(0, 0)), Clip)
    failure = reader.read(Ticket(1, 0))
    assert isinstance(failure, ReadFailure)
    assert failure.reason == "the clip has 2 frames, fewer than the 4 needed"


def test_times_that_do_not_fit_the_pictures_are_not_known(tmp_path):
    samples = [make_sample(i, frames=2) for i in range(5)]
    for sample, times in zip(samples, ([0.1, 0.3], [0.1], "soon", [0.1, None], None), strict=True):
        sample.metadata["frame_times"] = times
    table = ClipTable.open(write_set(tmp_path, samples))
    times = table.frame_times(0)
    assert times is not None
    assert times.tolist() == pytest.approx([0.1, 0.3])
    assert [table.frame_times(row) for row in range(1, 5)] == [None] * 4
    reader = ClipReader(tmp_path, choose_frames=all_frames, image_size=16)
    batch = collate([reader.read(Ticket(row, 0)) for row in (0, 1)], 1000, 0)
    assert batch.frame_times is not None
    assert batch.frame_times[0].tolist() == pytest.approx([0.1, 0.3])
    assert batch.frame_times[1].isnan().all()


def test_a_table_from_before_there_were_times_opens(tmp_path):
    folder = make_shards(tmp_path, 3, 3, seconds=0.1)
    new = ClipTable.open(folder)
    content = (folder / "index.table").read_bytes()
    length = int.from_bytes(content[17:25], "little")
    meta = json.loads(content[25 : 25 + length])
    names: list[str] = [name for name in meta.pop("columns") if name not in ("time_offsets", "frame_times")]
    assert meta.pop("bytes")
    attribute = {
        "starts": "_starts",
        "blocks": "_blocks",
        "id_offsets": "_id_offsets",
        "id_bytes": "_id_bytes",
    }
    columns = {name: Column.of(np.array(getattr(new, attribute.get(name, name)))) for name in names}
    write_table(folder / "index.table", columns, meta)
    old = ClipReader(folder, image_size=16)
    assert old.table.frame_times(0) is None
    clip = old.read(Ticket(1, 7))
    assert isinstance(clip, Clip)
    assert (clip.frame_times, clip.num_stored) == (None, 2)
    assert collate([clip], 100, 0).frame_times is None


def test_a_video_is_divided_into_as_many_frames_as_are_asked_for(tmp_path):
    film = write_video(tmp_path / "a.mp4").read_bytes()
    folder = write_set(tmp_path / "set", [Sample("a", {"id": "a"}, [("mp4", film)])])
    clip = ClipReader(folder, choose_frames=EvenFrames(12), image_size=16).read(Ticket(0, 0))
    assert isinstance(clip, Clip)
    assert clip.frames is not None
    assert clip.frame_times is not None
    assert (len(clip.frames), clip.frame_index, clip.num_stored) == (12, tuple(range(12)), 12)
    assert clip.frame_times.tolist() == sorted(clip.frame_times.tolist())
    assert clip.frame_times[-1] > 0.5
    one = ClipReader(folder, choose_frames=middle_frame, image_size=16).read(Ticket(0, 0))
    assert isinstance(one, Clip)
    assert (one.frame_index, one.num_stored) == ((5,), 10)


def test_clips_without_frames_say_nothing_of_frames(tmp_path):
    folder = make_shards(tmp_path, 2, 2, seconds=0.1)
    reader = ClipReader(folder, choose_frames=None)
    batch = collate([reader.read(Ticket(row, 0)) for row in (0, 1)], 1000, 3)
    assert (batch.frames, batch.frame_index, batch.num_stored, batch.frame_times) == (None,) * 4
