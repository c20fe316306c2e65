"""The mean of gradients over the ranks, exchanged while the backward pass still computes others (ZeRO 0)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: Numbers that are exchanged at a time, 32 MB: enough for the links' full speed, little enough to begin early.
BUCKET = 8_000_000


class OverlappedMean:
    """Averages the gradients of a step's last micro-batch, bucket by bucket, as they come.

    Buckets are filled from the last parameter to the first, about in the order of the backward pass, and sent in that
    order on every rank. A parameter that nothing depended on counts with zeros, since on another rank something may.
    (Where the ranks' graphs differ so, they may not exchange anything else in the backward pass, since it would come in
    different orders.) What is sent becomes the gradients' memory, so that nothing is copied back. A process that is
    alone sends nothing.

    Args:
        parameters: All that are trained; those without numbers are left out.
        is_last: Whether the present backward pass is the step's last.
        bucket: Numbers that are exchanged at a time; of one parameter all are.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], is_last: Callable[[], bool], bucket: int = BUCKET
    ) -> None:
        self._parameters = [one for one in parameters if one.requires_grad and one.numel()]
        self._size, self._is_last = dist.get_world_size(), is_last
        self._buckets = _buckets(self._parameters[::-1], bucket) if self._size > 1 else []
        self._sent: list[dist.Work] = []
        self._restart()
        for number, members in enumerate(self._buckets):
            for parameter in members:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def finish(self) -> None:
        """Sends what is left and waits for all; the backward pass is over.

        On a GPU it is the device that waits, not the host.
        """
        if not self._is_last():
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for members in self._buckets[len(self._sent) :]:
            self._send(members)
        for work in self._sent:
            work.wait()
        self._restart()

    def _restart(self) -> None:
        self._sent.clear()
        self._missing = [len(members) for members in self._buckets]

    def _arrived(self, bucket: int, _: Tensor) -> None:
        """A gradient of the bucket is whole: buckets that are, and all before them, are sent."""
        if not self._is_last():
            return
        self._missing[bucket] -= 1
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send(self._buckets[len(self._sent)])

    def _send(self, members: Sequence[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in members if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(self._size)
        for parameter, part in zip(members, flat.split([one.numel() for one in members]), strict=True):
            parameter.grad = part.view_as(parameter)
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append(work)


def _buckets(parameters: Iterable[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    """Neighbours that together have at most ``limit`` numbers, or one alone that has more."""
    found: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room:
            found.append([])
            room = limit
        found[-1].append(parameter)
        room -= parameter.numel()
    return found
