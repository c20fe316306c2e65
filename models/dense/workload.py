"""What a dense encoder costs, counted by passing fake tensors through it: sizes are real, nothing is computed.

Towers come from anywhere, so there is no formula for them. Counted are the towers and heads; the similarities of pairs
grow with the batch and are recomputed in the backward pass (`models.dense.similarity`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from models.dense.config import DenseModelConfig
from models.towers import Sound
from models.workload import Workload


def workload(encoder: nn.Module, config: DenseModelConfig, num_samples: int, bf16: bool) -> Workload:
    """One clip's share of a training step in which everything that can be trained is.

    Args:
        encoder: A `DenseEncoder`; stays as it is.
        config: Its sizes.
        num_samples: S of the waveform.
        bf16: Whether autocast computes in 16 bits.
    """

    def inputs(clips: int) -> tuple[Sound, Tensor]:
        return fake_sound(config, clips, num_samples), fake_frames(config, clips)

    flops, kept = clip_cost(encoder, inputs, bf16)
    return Workload(3.0 * flops, kept)


def fake_sound(config: DenseModelConfig, clips: int, num_samples: int) -> Sound:
    """Sounds of full length; to be called where tensors are fake."""
    waveform = torch.zeros(clips, num_samples, dtype=torch.int16)
    fbank = torch.zeros(clips, config.audio_length, config.num_mel_bins)
    lengths, frames = (torch.full((clips,), n) for n in (num_samples, config.audio_length))
    return Sound(waveform, lengths, fbank, frames)


def fake_frames(config: DenseModelConfig, clips: int) -> Tensor:
    """One picture a clip; likewise."""
    return torch.zeros(clips, 1, 3, config.image_size, config.image_size)


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
    mode = FakeTensorMode()
    state: dict[str, Tensor] = {
        name: mode.from_tensor(value.detach().cpu()).requires_grad_(value.requires_grad)
        for name, value in [*module.named_parameters(), *module.named_buffers()]
    }
    with mode:
        keeper = _Keeper(state)
        with (
            counter,
            torch.autograd.graph.saved_tensors_hooks(keeper.keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            functional_call(module, state, inputs(clips))
    return counter.get_total_flops(), keeper.total


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
