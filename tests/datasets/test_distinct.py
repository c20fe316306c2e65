"""No two clips of one video in a global batch, whatever the order, the epoch and the number of ranks."""

from pathlib import Path

import numpy as np
import pytest
from support.shards import make_sample

from datasets.index import index_folder
from datasets.loading.distinct import DistinctVideos, video_numbers
from datasets.loading.loader import ClipNeeds, DataConfig, TrainShare, WeightedSet, train_loader
from datasets.loading.plan import WindowShuffle
from datasets.loading.sampling import WeightedDraw
from datasets.shards.table import ClipTable
from datasets.shards.tar import ShardWriter, make_key


def make_segments(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for first in range(0, len(names), 6):
        with ShardWriter(folder / f"shard-{first // 6:06d}.tar") as writer:
            for number, name in enumerate(names[first : first + 6], first):
                sample = make_sample(number, seconds=0.05, size=(16, 16))
                sample.metadata["id"] = name
                writer.write(type(sample)(make_key(name), sample.metadata, sample.members))
    index_folder(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six videos of four segments, one after the other."""
    names = [f"vid_{v}_{s}.000" for v in "abcdef" for s in range(4)]
    return make_segments(tmp_path_factory.mktemp("segments") / "set", names)


def sequence(order: DistinctVideos, epochs: int) -> np.ndarray:
    return np.concatenate([order.rows(epoch) for epoch in range(epochs)])


@pytest.mark.parametrize(
    ("videos", "segments", "batch"),
    [(12, 5, 7), (12, 5, 8), (12, 5, 12), (10, 3, 10), (50, 7, 33), (9, 1, 4)],
)
def test_batches_of_distinct_videos_over_many_epochs(videos, segments, batch):
    for seed in range(4):
        of_row = np.random.default_rng(seed).permutation(np.repeat(np.arange(videos), segments))
        shards = np.full(-(-len(of_row) // 5), 5)
        shards[-1] = len(of_row) - shards[:-1].sum()
        order = DistinctVideos(WindowShuffle(tuple(shards.tolist()), seed, 3), of_row, batch)
        rows = sequence(order, 5)
        for epoch in range(5):
            own = rows[epoch * len(of_row) : (epoch + 1) * len(of_row)]
            assert sorted(own.tolist()) == list(range(len(of_row)))
        whole = len(rows) // batch * batch
        for places in of_row[rows[:whole]].reshape(-1, batch):
            assert len(set(places.tolist())) == batch
        assert np.array_equal(order.rows(3), rows[3 * len(of_row) : 4 * len(of_row)])


def test_an_order_that_is_right_already_stays():
    shuffle = WindowShuffle((20, 20, 20), 3, 2)
    order = DistinctVideos(shuffle, np.arange(60), 8)
    assert all(np.array_equal(order.rows(epoch), shuffle.rows(epoch)) for epoch in range(3))


def test_clips_move_no_further_than_they_must():
    of_row = np.random.default_rng(0).permutation(np.repeat(np.arange(300), 4))
    shuffle = WindowShuffle((30,) * 40, 0, 4)
    order = DistinctVideos(shuffle, of_row, 20)
    moved = np.flatnonzero(order.rows(1) != shuffle.rows(1))
    assert 0 < len(moved) < 200
    was = {row: place for place, row in enumerate(shuffle.rows(1).tolist())}
    assert max(abs(was[row] - place) for place, row in enumerate(order.rows(1).tolist())) < 6 * 20


def test_draws_with_replacement(folder):
    weights = np.ones(24)
    weights[::4] = 3.0
    numbers = video_numbers([ClipTable.open(folder)])
    order = DistinctVideos(WeightedDraw(np.arange(24), weights, 40, 1), numbers, 4)
    rows = sequence(order, 4)
    assert all(len(set(batch)) == 4 for batch in numbers[rows].reshape(-1, 4).tolist())
    plain = WeightedDraw(np.arange(24), weights, 40, 1)
    assert sorted(rows.tolist()) == sorted(np.concatenate([plain.rows(e) for e in range(4)]).tolist())


def test_which_clips_are_of_one_video(tmp_path):
    names = ["a_b_30.000", "a_b_40.000", "a_b", "a_b-1", "x/y_000030", "x/y_7", "y_000030", "z", "_5"]
    other = ["a_b_99", "q_1"]
    tables = [ClipTable.open(make_segments(tmp_path / str(i), some)) for i, some in enumerate((names, other))]
    assert video_numbers(tables).tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 5, 0, 6]


def test_every_number_of_ranks_reads_the_same_distinct_batches(folder):
    config = DataConfig(str(folder), num_workers=0, distinct_videos=True)
    needs = ClipNeeds(image_size=16, num_samples=1000)
    whole = list(train_loader(config, needs, TrainShare(1, 6, num_steps=9)))
    for world_size, start in ((2, 0), (3, 5)):
        loaders = [
            train_loader(
                config,
                needs,
                TrainShare(1, 6, rank=rank, world_size=world_size, start_step=start, num_steps=9),
            )
            for rank in range(world_size)
        ]
        for expected, parts in zip(whole[start:], zip(*loaders, strict=True), strict=True):
            assert [name for part in parts for name in part.ids] == expected.ids
    for batch in whole:
        assert sorted(name[:5] for name in batch.ids) == [f"vid_{v}" for v in "abcdef"]
    plain = train_loader(
        DataConfig(str(folder), num_workers=0), needs, TrainShare(1, 6, num_steps=9)
    )  # is tested to be no vacuous thing
    assert any(len({name[:5] for name in batch.ids}) < 6 for batch in plain)


def test_several_sets_know_each_others_videos(folder, tmp_path):
    other = make_segments(tmp_path / "other", [f"vid_{v}_{s}.000" for v in "abcghi" for s in (8, 9)])
    sets = [WeightedSet(str(folder), 2.0), WeightedSet(str(other), 1.0)]
    config = DataConfig(sets, num_workers=0, distinct_videos=True)
    for batch in train_loader(config, ClipNeeds(image_size=16), TrainShare(1, 5, num_steps=20)):
        assert len({name[:5] for name in batch.ids}) == 5


def test_too_few_videos_for_a_batch(folder):
    config = DataConfig(str(folder), num_workers=0, distinct_videos=True)
    with pytest.raises(ValueError, match=r"data.distinct_videos: .* batches of 7 clips .* it has 6 videos"):
        train_loader(config, ClipNeeds(image_size=16), TrainShare(0, 7))
    uneven = np.array([0] * 10 + [1, 2, 3, 4, 5])
    with pytest.raises(
        ValueError, match=r"data.distinct_videos: .*one of the videos is in every other batch"
    ):
        DistinctVideos(WindowShuffle((15,), 0), uneven, 3).rows(0)
