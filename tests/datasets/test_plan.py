import time

import numpy as np
import pytest

from datasets.loading.plan import (
    EvaluationBatches,
    EvaluationPlan,
    SamplePlan,
    TrainingBatches,
    WindowShuffle,
    mix,
    substitute_row,
)

SIZES = (7, 3, 11, 1, 8)  # 30 clips


def make_plan(global_batch_size=12, seed=5, window=2, sizes=SIZES):
    return SamplePlan(WindowShuffle(sizes, seed, window), seed, global_batch_size)


def test_hash_values_stay_what_they_are():
    assert mix(0)[0] == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    assert mix(1, 2)[0] != mix(2, 1)[0]
    assert make_plan().global_batch(3)[:2] == make_plan().global_batch(3)[:2]
    assert [ticket.row for ticket in make_plan().tickets(0, 6)] == [9, 8, 21, 7, 25, 12]


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_each_clip_comes_once_an_epoch(window):
    plan = make_plan(window=window)
    for epoch in range(4):
        rows = [ticket.row for ticket in plan.tickets(epoch * 30, 30)]
        assert sorted(rows) == list(range(30))
    assert len({tuple(t.row for t in plan.tickets(e * 30, 30)) for e in range(4)}) == 4


def test_batches_straddle_epochs_and_nothing_is_dropped():
    plan = make_plan(12)
    rows = [ticket.row for step in range(5) for ticket in plan.global_batch(step)]
    assert sorted(rows[:30]) == sorted(rows[30:]) == list(range(30))


def test_every_place_has_a_seed_of_its_own():
    seeds = [ticket.seed for ticket in make_plan().tickets(0, 3000)]
    assert len(set(seeds)) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds != [ticket.seed for ticket in make_plan(seed=6).tickets(0, 3000)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_global_and_micro_batches_are_the_same_for_every_number_of_ranks(world_size, num_micro_batches):
    plan = make_plan(12)
    ranks = [
        iter(TrainingBatches(plan, rank=r, world_size=world_size, num_micro_batches=num_micro_batches))
        for r in range(world_size)
    ]
    for step in range(6):
        micro_size = 12 // num_micro_batches
        for micro in range(num_micro_batches):
            joint = [ticket for rank in ranks for ticket in next(rank)]
            assert joint == plan.tickets(step * 12 + micro * micro_size, micro_size)


@pytest.mark.parametrize("start", [1, 2, 7, 1000])
def test_starting_at_a_step_equals_having_run_there(start):
    plan = make_plan(12)
    options = {"rank": 1, "world_size": 2, "num_micro_batches": 2, "num_steps": start + 2}
    whole = list(TrainingBatches(plan, **options))
    assert len(whole) == 2 * (start + 2)
    assert list(TrainingBatches(make_plan(12), start_step=start, **options)) == whole[2 * start :]


def test_skipped_steps_leave_the_others_as_they_are():
    plan = make_plan(12)
    batches = list(TrainingBatches(plan, num_steps=4, skipped_steps=[1]))
    assert batches == [plan.global_batch(step) for step in (0, 2, 3)]


def test_impossible_plans_name_their_numbers():
    with pytest.raises(ValueError, match="30 clips, fewer than one global batch of 31"):
        make_plan(31)
    with pytest.raises(ValueError, match="12 does not divide by 2 accumulated micro-batches times 4"):
        TrainingBatches(make_plan(12), num_micro_batches=2, world_size=4)
    with pytest.raises(ValueError, match="global_batch_size must be at least 1"):
        make_plan(0)
    with pytest.raises(ValueError, match="rank 2 is not one of 2 ranks"):
        TrainingBatches(make_plan(), rank=2, world_size=2)
    with pytest.raises(ValueError, match="shuffle_window"):
        make_plan(window=0)
    with pytest.raises(ValueError, match="no clips"):
        make_plan(sizes=())


def test_clips_of_a_window_come_together():
    order = WindowShuffle((100,) * 10, 0, 2)
    for epoch in range(3):
        shards = order.rows(epoch).reshape(5, 200) // 100
        windows = [set(window.tolist()) for window in shards]
        assert [len(window) for window in windows] == [2] * 5
        assert set.union(*windows) == set(range(10))


@pytest.mark.parametrize("window", [4, 16, 64])
def test_neighbours_in_a_shard_end_up_far_apart(window):
    """Two random places in a window of n clips lie n / 3 apart on average: shuffling in it is complete."""
    clips, shards = 50, 64
    order = WindowShuffle((clips,) * shards, 0, window)
    inside = np.arange(1, clips * shards) % clips != 0
    place = np.empty(clips * shards, np.int64)
    place[order.rows(0)] = np.arange(clips * shards)
    distance = np.abs(np.diff(place))[inside]
    print(f"window of {window} shards of {clips}: neighbours end up {distance.mean():.0f} places apart")
    assert distance.mean() == pytest.approx(window * clips / 3, rel=0.05)
    # Next to each other about as rarely as in a full shuffle of the window: 2 of n.
    assert (distance == 1).mean() == pytest.approx(2 / (window * clips), abs=0.006)


def test_companions_change_from_epoch_to_epoch():
    """The clips that share a batch with a clip are others in the next epoch."""
    order = WindowShuffle((20,) * 32, 0, 4)
    batches = [[set(batch) for batch in order.rows(epoch).reshape(-1, 32).tolist()] for epoch in range(2)]
    shared = [len(one & other) for one in batches[0] for other in batches[1]]
    assert max(shared) < 16


def test_an_epoch_of_two_million_is_ordered_in_no_time():
    plan = make_plan(256, window=16, sizes=(1000,) * 2000)
    begin = time.process_time()
    plan.global_batch(0)
    assert time.process_time() - begin < 1
    begin = time.process_time()
    for step in range(1, 51):
        plan.global_batch(step)
    assert time.process_time() - begin < 0.25  # the order is kept


@pytest.mark.parametrize(
    ("rows", "batch_size", "world_size"), [(30, 4, 1), (30, 4, 4), (31, 8, 3), (2, 4, 5), (0, 4, 2)]
)
def test_evaluation_visits_every_row_once(rows, batch_size, world_size):
    plans = [EvaluationPlan(rows, batch_size, rank, world_size) for rank in range(world_size)]
    batches = [list(EvaluationBatches(plan)) for plan in plans]
    visited = [ticket.row for rank in batches for batch in rank for ticket in batch]
    assert sorted(visited) == list(range(rows))
    counts = [sum(map(len, rank)) for rank in batches]
    assert max(counts) - min(counts) <= 1
    assert [len(rank) for rank in batches] == [len(plan) for plan in plans]
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)


def test_evaluation_seeds_follow_the_row():
    def seeds(world_size):
        plans = [EvaluationPlan(31, 8, rank, world_size) for rank in range(world_size)]
        return {
            ticket.row: ticket.seed for plan in plans for batch in EvaluationBatches(plan) for ticket in batch
        }

    assert seeds(1) == seeds(3)


def test_substitutes_are_spread_over_the_set():
    rows = [substitute_row(seed, attempt, 10) for seed in range(500) for attempt in (1, 2)]
    assert np.bincount(rows, minlength=10).min() > 60
    assert substitute_row(3, 1, 10**6) != substitute_row(3, 2, 10**6)
