"""Gathers rows of several dimensions in several processes, with a gradient that does not lie in order in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.parallel.world import distributed, gather_rows


def rows(rank: int) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(rank))


def loss_of(everyone: Tensor) -> Tensor:
    """Its gradient is transposed, and that of its second term is one number spread over all."""
    mixed = torch.arange(24.0).reshape(4, 3, 2).permute(1, 0, 2)  # (3, 4, 2)
    return (everyone.permute(1, 2, 0)[..., :2] * mixed).sum() + everyone.square().sum(2).mean()


def gradient_of_gathered() -> Tensor:
    with distributed() as world:
        own = rows(world.rank).requires_grad_()
        loss_of(gather_rows(own)).backward()
        assert own.grad is not None
        return own.grad / world.size  # data parallelism takes the mean over the ranks
