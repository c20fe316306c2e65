"""Work spread over processes that may die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from datasets.worker_pool import Failure, WorkerError, WorkerPool


def mapped(
    function: Callable[[int], int], count: int, num_workers: int, timeout: float = 60
) -> dict[int, int | Failure]:
    with WorkerPool(function, num_workers, timeout) as pool:
        return dict(pool.map(range(count)))


def die_on_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return item * item


def need_too_much_on_one(item: int) -> int:
    if item == 1:
        raise MemoryError
    return item


def sleep_on_two(item: int) -> int:
    time.sleep(60 if item == 2 else 0)
    return item


def raise_on_one(item: int) -> int:
    if item == 1:
        raise RuntimeError("no such luck")
    return item


def test_pool_names_the_item_whose_worker_died():
    results = mapped(die_on_three, 30, 2)
    assert list(results) == list(range(30))
    assert results.pop(3) == Failure("worker_died", "the process that decoded it ended with SIGSEGV, twice")
    assert all(value == item * item for item, value in results.items())


def test_pool_tells_a_lack_of_memory_from_a_bad_item():
    results = mapped(need_too_much_on_one, 3, 1)
    failure = results.pop(1)
    assert isinstance(failure, Failure)
    assert failure.reason == "worker_died"
    assert "ran out of memory, twice" in failure.detail
    assert results == {0: 0, 2: 2}


def test_pool_ends_what_takes_too_long():
    results = mapped(sleep_on_two, 5, 2, timeout=0.5)
    assert results == {0: 0, 1: 1, 2: Failure("timed_out", "took more than 0.5 s"), 3: 3, 4: 4}


def test_pool_passes_errors_on():
    with pytest.raises(WorkerError, match=r"no such luck"):
        mapped(raise_on_one, 5, 1)


def test_pool_reads_no_further_than_needed():
    taken = []
    with WorkerPool(abs, 1) as pool:
        results = pool.map(taken.append(i) or i for i in range(1000))
        assert next(results) == (0, 0)
        assert len(taken) <= 10
