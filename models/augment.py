"""Pretraining augmentation of the spectrogram, batched and from each sample's seed."""

from __future__ import annotations

import torch
from torch import Tensor

from models.random import Stream, uniform


def add_noise(fbank: Tensor, seeds: Tensor) -> Tensor:
    """Adds uniform noise of a random level: ``fbank + u * s / 10`` u (T, F) and s (scalar) in [0, 1).

    As in CAV-MAE's data loader.

    Args:
        fbank: (B, T, F) normalised log-mel.
        seeds: (B,) int64.
    """
    noise = uniform(seeds, Stream.FBANK_NOISE, tuple(fbank.shape[1:]))
    level = uniform(seeds, Stream.FBANK_NOISE_LEVEL, (1, 1)) / 10
    return fbank + noise * level


def roll_time(fbank: Tensor, seeds: Tensor) -> Tensor:
    """Rolls each sample along time by a whole number of frames, uniform in [-T, T).

    As in CAV-MAE's data loader.

    Args:
        fbank: (B, T, F).
        seeds: (B,) int64.
    """
    length = fbank.shape[1]
    shift = (uniform(seeds, Stream.FBANK_ROLL, (1,)) * (2 * length)).long() - length
    source = (torch.arange(length, device=fbank.device) - shift) % length
    return fbank[torch.arange(len(fbank), device=fbank.device)[:, None], source]


def augment_fbank(fbank: Tensor, seeds: Tensor) -> Tensor:
    """The published pretraining augmentation: `add_noise`, then `roll_time`."""
    return roll_time(add_noise(fbank, seeds), seeds)
