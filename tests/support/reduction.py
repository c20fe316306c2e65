"""What several ranks make of their gradients, for `tests/engine/test_reduction.py`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.parallel.reduction import OverlappedMean
from engine.parallel.world import distributed


class Layers(nn.Module):
    """Weights used once, twice, on rank 0 alone, in the first micro-batch alone, never; and frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.on_rank_0, self.early, self.never = (nn.Parameter(torch.randn(4)) for _ in range(3))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0))

    def forward(self, x: Tensor, rank: int, micro_batch: int) -> Tensor:
        x = self.twice(self.twice(self.first(x)).tanh()) * self.frozen
        if rank == 0:
            x = x * self.on_rank_0
        if micro_batch == 0:
            x = x * self.early
        return self.last(x).square().mean()


def reduced(bucket: int, micro_batches: int, steps: int) -> list[dict]:
    """Of each step this rank's own gradients, those after the exchange, and what happened in which order."""
    found = []
    with distributed() as world:
        module, own, events = Layers(), Layers(), []
        number = 0
        mean = OverlappedMean(module.parameters(), lambda: number == micro_batches - 1, bucket)
        module.first.weight.register_post_accumulate_grad_hook(lambda _: events.append("first layer"))
        send = dist.all_reduce

        def noted(tensor: Tensor, async_op: bool) -> dist.Work | None:
            events.append(f"sent {tensor.numel()}")
            return send(tensor, async_op=async_op)

        dist.all_reduce = noted
        for step in range(steps):
            events.clear()
            for number in range(micro_batches):  # what `is_last` reads
                x = torch.randn(
                    3, 4, generator=torch.Generator().manual_seed(100 * step + 10 * number + world.rank)
                )
                module(x, world.rank, number).backward()
                own(x, world.rank, number).backward()
                mean.finish()
            grads = [
                {n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (own, module)
            ]
            found.append({"own": grads[0], "mean": grads[1], "events": list(events)})
            module.zero_grad()
            own.zero_grad()
        dist.all_reduce = send
    return found
