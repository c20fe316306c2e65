"""Balanced sampling and mixup: what is drawn, how often, and the same for every number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.shards import make_shards

from datasets.batch import Ticket
from datasets.loading.loader import ClipNeeds, DataConfig, TrainShare, train_loader
from datasets.loading.plan import SamplePlan, TrainingBatches
from datasets.loading.sampling import (
    MixedBatch,
    SamplingConfig,
    SubsetShuffle,
    WeightedDraw,
    class_counts,
    clip_weights,
    epoch_order,
    mixup_partner,
    subset_rows,
)
from datasets.shards.table import ClipTable
from datasets.shards.table_builder import TableBuilder, TableRow

SIZE: dict[str, Any] = {"image_size": 16, "num_samples": 4000}
#: Clips of each class; every fifth clip of class 0 also has class 3.
COUNTS = (600, 60, 6)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> ClipTable:
    """666 clips in 7 shards with a long tail of classes; no shards behind it."""
    rows: list[list[int]] = []
    for label, count in enumerate(COUNTS):
        rows += [[label, 3] if label == 0 and i % 5 == 0 else [label] for i in range(count)]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(rows))
    members = [("json", 512, 10), ("flac", 1536, 600)]
    with TableBuilder(tmp_path_factory.mktemp("table")) as builder:
        for shard in range(7):
            part = order[shard::7].tolist()
            builder.add(f"{shard}.tar", [TableRow(str(i), str(i), rows[i], 1.0, members) for i in part])
        return builder.save("none", 4)


def histogram(table: ClipTable, rows: np.ndarray) -> np.ndarray:
    return np.bincount([label for row in rows for label in table.labels(row)], minlength=4)


def test_weights_are_summed_over_the_classes_of_a_clip(table):
    rows = np.arange(len(table))
    counts = class_counts(table)
    assert counts.tolist() == [600, 60, 6, 120]
    expected = np.array([sum(1 / counts[label] for label in table.labels(row)) for row in rows])
    np.testing.assert_allclose(clip_weights(table, rows), expected)


def test_balanced_classes_come_equally_often(table):
    plain = epoch_order(table, SamplingConfig(), 1, 4)
    balanced = epoch_order(table, SamplingConfig(balanced=True, epoch_clips=1200), 1, 4)
    assert histogram(table, plain.rows(0)).tolist() == [600, 60, 6, 120]
    drawn = np.stack([histogram(table, balanced.rows(epoch)) for epoch in range(20)])
    # Of 4 classes' unit weights each has a quarter; class 0 rides along with class 3's clips.
    np.testing.assert_allclose(drawn[:, 1:3].mean(0), [300, 300], atol=2)
    assert (np.abs(drawn[:, 1:3] - 300) <= 3).all(), drawn
    assert (drawn[:, 3] >= 300).all()


def test_each_clip_comes_as_often_as_its_weight_says(table):
    order = epoch_order(table, SamplingConfig(balanced=True), 5, 4)
    weights = clip_weights(table, np.arange(len(table)))
    expected = weights / weights.sum() * len(order)
    for epoch in range(3):
        times = np.bincount(order.rows(epoch), minlength=len(table))
        assert (times >= np.floor(expected - 1e-9)).all()
        assert (times <= np.ceil(expected + 1e-9)).all()
    mean = np.mean([np.bincount(order.rows(e), minlength=len(table)) for e in range(300)], axis=0)
    np.testing.assert_allclose(mean, expected, atol=0.15)


def test_equal_weights_give_each_clip_once():
    order = WeightedDraw(np.arange(50), np.ones(50), 50, 3)
    for epoch in range(3):
        assert sorted(order.rows(epoch).tolist()) == list(range(50))
    assert order.rows(0).tolist() != order.rows(1).tolist()


def test_orders_are_pure_functions_of_seed_and_epoch(table):
    for config in (SamplingConfig(balanced=True), SamplingConfig(max_clips=40)):
        first, again, other = (epoch_order(table, config, seed, 4) for seed in (1, 1, 2))
        assert np.array_equal(first.rows(3), again.rows(3))
        assert not np.array_equal(first.rows(3), first.rows(4))
        assert not np.array_equal(first.rows(3), other.rows(3))


def test_a_subset_keeps_the_shares_of_the_classes(table):
    rows = subset_rows(table, 111, 0)
    assert len(set(rows.tolist())) == 111
    np.testing.assert_allclose(histogram(table, rows)[:3], [100, 10, 1], atol=1)
    order = epoch_order(table, SamplingConfig(max_clips=111), 0, 4)
    assert isinstance(order, SubsetShuffle)
    assert sorted(order.rows(7).tolist()) == rows.tolist()
    balanced = epoch_order(table, SamplingConfig(max_clips=111, balanced=True), 0, 4)
    assert set(balanced.rows(2).tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_balanced_batches_are_the_same_for_every_number_of_ranks(table, world_size):
    plan = SamplePlan(epoch_order(table, SamplingConfig(balanced=True), 5, 4), 5, 12)
    ranks = [
        iter(TrainingBatches(plan, rank=r, world_size=world_size, start_step=40)) for r in range(world_size)
    ]
    for step in range(40, 60):
        assert [ticket for rank in ranks for ticket in next(rank)] == plan.global_batch(step)


def test_partners_are_other_clips_of_the_pool():
    pool = np.array([3, 5, 8, 13, 21])
    tickets = [Ticket(int(pool[i % 5]), 1000 + i) for i in range(2000)]
    mixed = [mixup_partner(ticket, pool, 0.5, 10) for ticket in tickets]
    found = [(ticket, partner) for ticket, partner in zip(tickets, mixed, strict=True) if partner]
    assert 920 < len(found) < 1080
    assert all(partner[0].row in pool and partner[0].row != ticket.row for ticket, partner in found)
    times = np.bincount([partner[0].row for _, partner in found], minlength=22)[pool]
    assert times.min() > 150
    assert len({partner[0].seed for _, partner in found}) == len(found)
    assert mixed == [mixup_partner(ticket, pool, 0.5, 10) for ticket in tickets]


@pytest.mark.parametrize("alpha", [1, 10])
def test_weights_follow_the_beta_distribution(alpha):
    pool = np.arange(10)
    drawn = [mixup_partner(Ticket(0, seed), pool, 1.0, alpha) for seed in range(3000)]
    weights = [partner[1] for partner in drawn if partner]
    assert len(weights) == 3000
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixed_batches_from_shards(tmp_path: Path):
    shards = make_shards(tmp_path / "set", 20, 7, seconds=0.2, frames=3)
    config = DataConfig(str(shards), num_workers=0)
    sampling = SamplingConfig(balanced=True, mixup=0.5)

    def batches(rank: int, world_size: int, start: int = 0) -> list[MixedBatch]:
        share = TrainShare(3, 12, rank=rank, world_size=world_size, start_step=start, num_steps=4)
        loader = train_loader(config, ClipNeeds(**SIZE), share, sampling)
        found = list(loader)
        assert all(isinstance(batch, MixedBatch) for batch in found)
        return found  # type: ignore[return-value]

    joint, halves = batches(0, 1), [batches(rank, 2, start=2) for rank in range(2)]
    for whole, *parts in zip(joint[2:], *halves, strict=True):
        assert whole.ids == [name for part in parts for name in part.ids]
        assert whole.partners is not None
        assert whole.weights is not None
        assert torch.equal(
            whole.weights, torch.cat([part.weights for part in parts if part.weights is not None])
        )
        partners = [part.partners for part in parts if part.partners is not None]
        assert whole.partners.ids == [name for part in partners for name in part.ids]
        waveforms = [p.waveform for p in partners if p.waveform is not None]
        assert whole.partners.waveform is not None
        assert torch.equal(whole.partners.waveform, torch.cat(waveforms))
        plain = whole.weights == 1
        assert 0 < plain.sum() < 12
        for i, name in enumerate(whole.ids):
            assert (whole.partners.ids[i] == name) == bool(plain[i])
    moved = joint[0].to("meta")
    assert isinstance(moved, MixedBatch)
    assert moved.partners is not None
    assert moved.partners.labels is not None
    assert moved.partners.labels.is_meta


def test_settings_that_can_not_be(table):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mixup": 1.5}, "sampling.mixup is 1.5"),
        ({"epoch_clips": 10}, "sampling.epoch_clips needs sampling.balanced"),
        ({"mixup_alpha": 0}, "sampling.mixup_alpha is 0"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            SamplingConfig(**options)
    with pytest.raises(ValueError, match=r"sampling.max_clips is 700, but the training set has 666"):
        subset_rows(table, 700, 0)
    with pytest.raises(ValueError, match="needs labels"):
        WeightedDraw(np.arange(3), np.zeros(3), 3, 0)
