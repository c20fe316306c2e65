"""Gathered rows bring each rank its own gradient, however that lies in memory."""

import torch
from support.gathering import loss_of, rows
from support.processes import run_ranks


def test_gradients_arrive_where_they_belong() -> None:
    everyone = torch.cat([rows(0), rows(1)]).requires_grad_()
    loss_of(everyone).backward()
    assert everyone.grad is not None
    found = torch.cat(run_ranks("support.gathering:gradient_of_gathered", 2))
    torch.testing.assert_close(found, everyone.grad)
