"""The benchmark of weak scaling: whose turn it is, the table, and the arithmetic of the model."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.scaling import count_parameters, measure_by_turns, measured_lines
from benchmarks.scaling_model import LINKS, Link, Step, model_lines
from models import create_model, parameter_count

SLOW = Link("slow", bandwidth=1e9, latency=1e-3)


def test_a_step_waits_for_what_is_exchanged_after_it() -> None:
    """A million numbers of 4 bytes over 1 GB/s, in one bucket, each message 1 ms late."""
    for gpus, part, hops in ((1, 0.0, 0), (2, 1 / 2, 1), (8, 7 / 8, 3)):
        once = part * 4e6 / 1e9
        reduced = 2 * (once + hops * 1e-3)
        for stage, waiting in ((0, reduced), (1, reduced + once + (gpus - 1) * 1e-3)):
            step = Step(0.1, 1_000_000, stage)
            assert step.waiting(SLOW, gpus) == pytest.approx(waiting)
            assert step.efficiency(SLOW, gpus) == pytest.approx(0.1 / (0.1 + waiting))


def test_without_zero_the_backward_pass_hides_what_is_exchanged_during_it() -> None:
    """100 million numbers of 4 bytes over 1 GB/s, both ways between two: 0.4 s and 13 buckets' latency."""
    reduced = 0.4 + 13 * 2e-3
    assert Step(0.3, 100_000_000, 0).waiting(SLOW, 2) == pytest.approx(reduced - 0.2)
    assert Step(30.0, 100_000_000, 0).waiting(SLOW, 2) == pytest.approx(reduced / 13)  # the last bucket
    # Of DeepSpeed's two buckets with ZeRO nothing is hidden.
    assert Step(30.0, 100_000_000, 1).waiting(SLOW, 2) == pytest.approx(0.6 + 2 * 3e-3)


def test_links_are_read_from_the_command_line() -> None:
    assert Link.parse("ndr=50:5") == Link("ndr", 50e9, 5e-6)
    for text in ("ndr", "ndr=50", "=50:5", "ndr=50:0", "ndr=fast:5"):
        with pytest.raises(ValueError, match="NAME=GIGABYTES_PER_SECOND:MICROSECONDS"):
            Link.parse(text)


def test_the_model_is_marked_as_one() -> None:
    lines = list(model_lines(Step(0.5, 190_000_000, 1), [*LINKS, SLOW], [8, 64]))
    assert lines[0].startswith("**A model, not a measurement**")
    head, _, *rows = lines[4:]
    assert head == "| link | GB/s | µs | 8 GPUs | 64 GPUs |"
    assert len(rows) == len(LINKS) + 1
    # 3 · 7/8 · 0.76 s + (2 · 3 + 7) · 4 buckets · 1 ms, and with 63 of 64.
    assert rows[-1] == "| slow | 1 | 1000 | 19.6% (2.05 s) | 16.4% (2.54 s) |"


def test_ways_take_turns_and_are_compared_turn_by_turn() -> None:
    order, seconds = [], iter([1.0, 1.25, 2.0, 2.0, 2.0, 2.5])
    found = measure_by_turns(lambda way: order.append(way) or next(seconds), repeats=2)
    assert order == ["one", "apart", "together"] * 2
    _, _, *rows = measured_lines(found, processes=4)
    assert rows[0] == "| one | 1 | 2 | 1.5000 | 1.0000 … 2.0000 | 100.0% | 100.0% … 100.0% |"
    assert rows[1] == "| apart | 4 | 2 | 1.6250 | 1.2500 … 2.0000 | 90.0% | 80.0% … 100.0% |"
    assert rows[2] == "| together | 4 | 2 | 2.2500 | 2.0000 … 2.5000 | 65.0% | 50.0% … 80.0% |"


def test_parameters_are_those_of_the_model() -> None:
    options = argparse.Namespace(objective="cav_mae", model="cav_mae_tiny")
    assert count_parameters(options) == parameter_count(create_model("cav_mae_tiny"))
