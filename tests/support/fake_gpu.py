"""A GPU that is not there: tensors with sizes, types and a device but no values, and what is forbidden in a step."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
Module = TypeVar("Module", bound=nn.Module)


class NoWaiting(TorchDispatchMode):
    """Refuses every operation with tensors of both host and GPU, but copies to the GPU that nobody waits for.

    Attributes:
        dtypes: By operation, of what it returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given, made = (
            [x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in ((args, kwargs), found)
        )
        devices = {x.device.type for x in [*given, *made]}
        sent = {x.device.type for x in made} == {"cuda"} and kwargs.get("non_blocking")
        assert len(devices) <= 1 or sent, f"{func} joins tensors of {' and '.join(sorted(devices))}"
        self.dtypes[func.overloadpacket.__name__].update(x.dtype for x in made)
        return found


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Within it tensors are fake, and those of the GPU may be made, without one and with a PyTorch for CPUs alone.

    A fake tensor raises where its value is asked for, and where it meets tensors of another device. Fused attention
    asks the GPU what it can, so the plain one stands in for it; autocast is told what a GPU would say.
    """
    with (
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        torch.autograd.set_multithreading_enabled(False),  # there is no thread for a device that is not there
        sdpa_kernel(SDPBackend.MATH),
        FakeTensorMode(allow_non_fake_inputs=False) as mode,
    ):
        yield mode


@functools.cache
def works(function: Callable[[Tensor], object]) -> bool:
    """Whether PyTorch can do that with a number on the GPU that is not there.

    It depends on the build how far differentiation goes: one for CUDA records what is done, but its engine asks for the
    streams of a GPU before the backward pass.
    """
    try:
        with fake_gpu():
            function(torch.ones((), device=GPU, requires_grad=True))
    except RuntimeError:
        return False
    return True


def on_gpu(module: Module, mode: FakeTensorMode) -> Module:
    """The module with its parameters and buffers on the GPU, changed in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(_fake(value, mode), value.requires_grad)
        part._buffers.update({name: _fake(x, mode) for name, x in part._buffers.items() if x is not None})
    return module


def _fake(value: Tensor, mode: FakeTensorMode) -> Tensor:
    return mode.from_tensor(value).detach().to(GPU)
