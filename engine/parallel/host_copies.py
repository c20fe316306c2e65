"""Copies of a state in the host's memory, taken between two steps."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

T = TypeVar("T")


def copy_to_host(tree: T) -> T:
    """Nested dicts, lists and tuples with a copy of each tensor, contiguous and in host memory of its own.

    From a GPU too it returns when the copies are there. Pinned memory would come behind the steps' back and several
    times as fast, but PyTorch rounds each tensor of it up to a power of two and never gives it back.
    """
    return tree_map_only(Tensor, _copy, tree)


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
