"""What a dense encoder costs: its towers and heads. Towers come from anywhere, so there is no formula for them.

The similarities of pairs grow with the batch and are recomputed in the backward pass (`models.dense.similarity`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.dense.config import DenseModelConfig
from models.measured import clip_cost
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
