"""What any module costs, and what it uses, by passing fake tensors through it: sizes are real, nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def clip_cost(module: nn.Module, inputs: Callable[[int], tuple], bf16: bool) -> tuple[int, int]:
    """FLOPs of a forward pass and bytes that autograd keeps of it, for one clip: what a second one adds to the first.

    Args:
        module: Is called with the inputs.
        inputs: Makes those of so many clips.
        bf16: Whether autocast computes in 16 bits.
    """
    one, two = (_counted(module, inputs, clips, bf16) for clips in (1, 2))
    return two[0] - one[0], two[1] - one[1]


def _counted(module: nn.Module, inputs: Callable[[int], tuple], clips: int, bf16: bool) -> tuple[int, int]:
    counter = FlopCounterMode(display=False)
    mode, state = _faked(module)
    with mode:
        keeper = _Keeper(state)
        with (
            counter,
            torch.autograd.graph.saved_tensors_hooks(keeper.keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            functional_call(module, state, inputs(clips))
    return counter.get_total_flops(), keeper.total


def unused_parameters(
    module: nn.Module, inputs: Callable[[int], tuple], loss: Callable[[Any], Tensor]
) -> set[str]:
    """Names of the parameters that get no gradient though they ask for one.

    Args:
        module: Is called with the inputs.
        inputs: Makes those of so many clips.
        loss: From the module's result to a () tensor.
    """
    mode, state = _faked(module)
    with mode:
        loss(functional_call(module, state, inputs(2))).backward()
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name for name in names if state[name].grad is None}


def _faked(module: nn.Module) -> tuple[FakeTensorMode, dict[str, Tensor]]:
    """A mode in which nothing is computed, and parameters and buffers in it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return mode, {
        name: mode.from_tensor(value.detach().cpu()).requires_grad_(value.requires_grad)
        for name, value in [*module.named_parameters(), *module.named_buffers()]
    }


class _Keeper:
    """Adds up the bytes of what autograd keeps, each storage once.

    Args:
        state: Parameters and buffers, which are not counted.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        self._own = {value.untyped_storage()._cdata for value in state.values()}
        self._seen: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """A hook for what is saved."""
        storage = tensor.untyped_storage()
        self._seen[storage._cdata] = storage
        return tensor

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(storage.nbytes() for key, storage in self._seen.items() if key not in self._own)
