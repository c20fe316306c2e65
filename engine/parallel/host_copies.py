"""Copies of a state in the host's memory, taken between two steps without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

T = TypeVar("T")


def copy_to_host(tree: T) -> T:
    """Nested dicts, lists and tuples with a copy of each tensor, contiguous and in host memory of its own.

    From a GPU the copies are under way when it returns, into pinned memory: steps that follow change nothing of them,
    and what reads them calls `copies_done` before.
    """
    return tree_map_only(Tensor, _copy, tree)


def copies_done(device: torch.device) -> Callable[[], object]:
    """What waits, in whatever thread, until the copies begun so far have come from ``device``."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def _copy(tensor: Tensor) -> Tensor:
    source = tensor.detach()
    kept = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
    return kept.copy_(source, non_blocking=True)
