"""Gradients averaged while the backward pass goes on, in real processes."""

from __future__ import annotations

import pytest
import torch
from support.processes import run_ranks
from support.reduction import Layers

TRAINED = {name: p for name, p in Layers().named_parameters() if p.requires_grad and p.numel()}


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (3, 2)])
def test_every_rank_has_the_mean_of_all(ranks: int, micro_batches: int) -> None:
    """Of weights used twice, on one rank, in one micro-batch and never; step after step."""
    found = run_ranks("support.reduction:reduced", ranks, bucket=20, micro_batches=micro_batches, steps=3)
    for step in zip(*found, strict=True):
        for name, parameter in TRAINED.items():
            own = [rank["own"].get(name, torch.zeros_like(parameter)) for rank in step]
            expected = torch.stack(own).mean(0)
            for rank in step:
                torch.testing.assert_close(rank["mean"][name], expected)
            assert all(torch.equal(rank["mean"][name], step[0]["mean"][name]) for rank in step), name
        assert all(set(rank["mean"]) == set(TRAINED) for rank in step)


def test_last_layers_are_sent_before_the_first_ones_gradient_is_there() -> None:
    """In the same order on every rank, and once a step, however many micro-batches there are."""
    found = run_ranks("support.reduction:reduced", 2, bucket=20, micro_batches=2, steps=2)
    for steps in found:
        for step in steps:
            events = step["events"]
            assert events.count("first layer") == 2  # a micro-batch each
            computed = len(events) - events[::-1].index("first layer")
            assert any(event.startswith("sent") for event in events[:computed])
            sent = [int(event.split()[1]) for event in events if event.startswith("sent")]
            assert sum(sent) == sum(p.numel() for p in TRAINED.values())
            assert all(number <= 20 for number in sent)
    (order,) = {tuple(e for e in step["events"] if e != "first layer") for steps in found for step in steps}
    assert len(order) > 3
