from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.shards import make_shards

from datasets.batch import AVBatch, ReadFailure, Ticket
from datasets.loading.joined import JoinedReader, common_labels, training_order
from datasets.loading.loader import (
    ClipLoader,
    ClipNeeds,
    DataConfig,
    TrainShare,
    WeightedSet,
    train_loader,
)
from datasets.loading.plan import SamplePlan
from datasets.loading.reader import ClipReader
from datasets.loading.sampling import MixedBatch, SamplingConfig
from datasets.shards.manifest import Label, ShardIndex
from datasets.shards.table import ClipTable

NEEDS = ClipNeeds(image_size=16, num_samples=2000)
SIZES = (12, 30, 7)
FIRST = np.cumsum([0, *SIZES])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("sets")
    return [make_shards(root / str(i), size, 5, seconds=0.1) for i, size in enumerate(SIZES)]


def config(folders: list[Path], *weights: float, **options: Any) -> DataConfig:
    sets = [WeightedSet(str(folder), weight) for folder, weight in zip(folders, weights, strict=False)]
    return DataConfig(sets, num_workers=0, shuffle_window=2, **options)


def order(folders: list[Path], weights: list[float], sampling: SamplingConfig | None = None, seed: int = 5):
    tables = [ClipTable.open(folder) for folder in folders]
    return training_order(tables, weights, sampling or SamplingConfig(), seed, 2)


def sets_of(rows) -> np.ndarray:
    return np.searchsorted(FIRST, rows, side="right") - 1


def test_each_set_has_its_share_of_every_epoch_and_nearly_of_every_batch(folders):
    weights = [3.0, 1.0, 2.0]
    joined = order(folders, weights)
    assert len(joined) == sum(SIZES)
    exact = np.array(weights) / 6 * len(joined)
    for epoch in range(5):
        counts = np.bincount(sets_of(joined.rows(epoch)), minlength=3)
        assert np.abs(counts - exact).max() < 1
    plan = SamplePlan(joined, 0, 12)
    for step in range(40):
        counts = np.bincount(sets_of([ticket.row for ticket in plan.global_batch(step)]), minlength=3)
        assert np.abs(counts - [6, 2, 4]).max() <= 2


def test_all_clips_of_a_set_come_before_one_comes_again(folders):
    joined = order(folders, [3.0, 1.0, 2.0])
    sequence = np.concatenate([joined.rows(epoch) for epoch in range(8)])
    for number, size in enumerate(SIZES):
        own = sequence[sets_of(sequence) == number]
        for first in range(0, len(own) - size, size):
            assert len(set(own[first : first + size])) == size


def test_orders_differ_between_sets_epochs_and_seeds(folders):
    joined = order(folders, [1.0, 1.0, 1.0])
    assert not np.array_equal(joined.rows(0), joined.rows(1))
    assert not np.array_equal(joined.rows(0), order(folders, [1.0, 1.0, 1.0], seed=6).rows(0))
    assert np.array_equal(joined.rows(3), order(folders, [1.0, 1.0, 1.0]).rows(3))


def test_a_set_of_weight_0_is_not_drawn(folders):
    joined = order(folders, [1.0, 0.0, 1.0])
    assert len(joined) == SIZES[0] + SIZES[2]
    assert set(sets_of(joined.rows(0))) == {0, 2}


def parts(
    folders: list[Path], world_size: int, steps: int, start: int = 0, sampling: SamplingConfig | None = None
) -> list[list[AVBatch]]:
    loaders: list[ClipLoader[SamplePlan]] = [
        train_loader(
            config(folders, 3.0, 1.0, 2.0),
            NEEDS,
            TrainShare(5, 12, rank=rank, world_size=world_size, start_step=start),
            sampling,
        )
        for rank in range(world_size)
    ]
    return [list(batches) for batches in islice(zip(*map(iter, loaders), strict=True), steps)]


def joint(batches: list[AVBatch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


def test_batches_are_the_same_for_every_number_of_ranks_and_resumed_exactly(folders):
    whole = parts(folders, 1, 9)
    for world_size, start in ((2, 0), (3, 4)):
        for expected, found in zip(whole[start:], parts(folders, world_size, 9 - start, start), strict=True):
            for name in ("rows", "seeds", "frames", "waveform", "labels"):
                assert torch.equal(joint(expected, name), joint(found, name)), name
    rows = joint([batch for step in whole for batch in step], "rows").numpy()
    counts = np.bincount(sets_of(rows), minlength=3)
    np.testing.assert_allclose(counts / len(rows), [3 / 6, 1 / 6, 2 / 6], atol=0.03)


def test_rows_are_those_of_all_sets_and_clips_those_of_their_own(folders):
    for batch in (batches[0] for batches in parts(folders, 1, 4)):
        assert batch.labels is not None
        for name, row, labels in zip(batch.ids, batch.rows.tolist(), batch.labels, strict=True):
            own = row - FIRST[sets_of(row)]
            assert name == f"clip-{own:05d}"
            assert labels.argmax() == own % 3


def test_balanced_draws_and_mixup_over_several_sets(folders):
    sampling = SamplingConfig(balanced=True, mixup=0.5)
    one, two = (parts(folders, world_size, 3, sampling=sampling) for world_size in (1, 2))
    partners: Counter[int] = Counter()
    for expected, found in zip(one, two, strict=True):
        assert torch.equal(joint(expected, "rows"), joint(found, "rows"))
        for batch in expected:
            assert isinstance(batch, MixedBatch)
            assert batch.partners is not None
            partners.update(sets_of(batch.partners.rows.numpy()).tolist())
    assert set(partners) == {0, 1, 2}
    assert len(order(folders, [1.0, 1.0, 1.0], SamplingConfig(balanced=True, epoch_clips=90))) == 90


def test_a_bad_clip_is_replaced_by_one_of_its_own_set(folders, tmp_path):
    bad = make_shards(tmp_path / "bad", 4, 4, seconds=0.1)
    shard = bad / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    extent = ClipTable.open(bad).members(2)[1]
    content[extent.offset + 512 : extent.offset + 1024] = bytes(512)
    shard.write_bytes(content)
    reader = JoinedReader([ClipReader(folder, image_size=16) for folder in (folders[0], bad)])
    for seed in range(5):
        clip = reader.read(Ticket(12 + 2, seed))
        assert not isinstance(clip, ReadFailure)
        assert clip.row in (12, 13, 15)
        assert [failure.id for failure in clip.failures] == ["clip-00002"]


def test_sets_with_other_classes_are_read_without_labels(folders, tmp_path):
    other = make_shards(tmp_path / "other", 12, 5, seconds=0.1, num_classes=4)
    loader = train_loader(config([folders[0], other], 1, 1), NEEDS, TrainShare(0, 6, num_steps=1))
    (batch,) = loader
    assert batch.labels is None
    assert loader.num_clips == 24
    indices = [ShardIndex.load(folder) for folder in (folders[0], other)]
    with pytest.raises(ValueError, match=r"a and b have different classes .3 classes and 4.*--classes"):
        common_labels(["a", "b"], indices)
    renamed = ShardIndex((), (Label("class 0"), Label("Dog"), Label("class 2")))
    with pytest.raises(ValueError, match="class 1 is 'class 1' in the one and 'Dog' in the other"):
        common_labels(["a", "b"], [indices[0], renamed])
    counted = common_labels(["a", "b"], [indices[0], indices[0]])
    assert [label.count for label in counted] == [8, 8, 8]


def test_settings_that_can_not_be(folders, tmp_path):
    with pytest.raises(ValueError, match="the weights of the sets sum to 0"):
        config(folders, 0, 0)
    with pytest.raises(ValueError, match=r"data.train must name the folder"):
        DataConfig([])
    with pytest.raises(ValueError, match=r"the weight of .* is -1"):
        config(folders, 1, -1)
    with pytest.raises(ValueError, match="the weight of x is nan"):
        WeightedSet("x", float("nan"))
    (tmp_path / "link").symlink_to(folders[0])
    for again in (f"{folders[0]}/", f"{folders[0].parent}/./0", str(tmp_path / "link")):
        with pytest.raises(ValueError, match=r"data.train names one set twice"):
            DataConfig([WeightedSet(str(folders[0])), WeightedSet(again, 2.0)])
    with pytest.raises(
        ValueError, match=r"data.cache_dir must name a folder to keep the shards of s3://b/set"
    ):
        DataConfig([WeightedSet(str(folders[0])), WeightedSet("s3://b/set")])
    with pytest.raises(ValueError, match=r"sampling.max_clips takes a part of one training set"):
        order(folders, [1, 1, 1], SamplingConfig(max_clips=5))
    with pytest.raises(ValueError, match=r"with weight 0.001 the set .*/1 would have none of the 49 places"):
        order(folders, [1, 0.001, 1])
