"""Augmentation of spectrograms and mixing of clips, batched and from each sample's seed."""

from __future__ import annotations

import torch
from torch import Tensor

from models.sample_random import Stream, uniform, uniforms


def add_noise(fbank: Tensor, seeds: Tensor) -> Tensor:
    """Adds uniform noise of a random level: ``fbank + u * s / 10`` u (T, F) and s (scalar) in [0, 1).

    As in CAV-MAE's data loader.

    Args:
        fbank: (B, T, F) normalised log-mel.
        seeds: (B,) int64.
    """
    draws = [(Stream.FBANK_NOISE, tuple(fbank.shape[1:])), (Stream.FBANK_NOISE_LEVEL, (1, 1))]
    noise, level = uniforms(seeds, draws)
    return fbank + noise * (level / 10)


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


def mask_bands(fbank: Tensor, seeds: Tensor, max_bins: int, max_frames: int, fill: float) -> Tensor:
    """SpecAugment (Park et al. 2019): overwrites a band of mel bins and a stretch of time.

    As ``torchaudio.transforms.FrequencyMasking(max_bins)`` and ``TimeMasking(max_frames)``: a width uniform
    in [0, max), then a start uniform in [0, size - width).

    Args:
        fbank: (B, T, F).
        seeds: (B,) int64.
        max_bins: Upper bound of the band's width; 0 masks none (published: 48).
        max_frames: Upper bound of the stretch's length; 0 masks none (published: 192).
        fill: What is written.
    """
    if max_bins:
        bins = _band(seeds, Stream.FREQUENCY_MASK, fbank.shape[2], max_bins)
        fbank = fbank.masked_fill(bins[:, None, :], fill)
    if max_frames:
        frames = _band(seeds, Stream.TIME_MASK, fbank.shape[1], max_frames)
        fbank = fbank.masked_fill(frames[:, :, None], fill)
    return fbank


def _band(seeds: Tensor, stream: int, size: int, max_width: int) -> Tensor:
    """(B, size) bool, true inside each sample's band."""
    width, start = uniform(seeds, stream, (2,)).unbind(1)
    width = width * min(max_width, size)
    first = (start * (size - width)).long()
    place = torch.arange(size, device=seeds.device)
    return (place >= first[:, None]) & (place < (first + width.long())[:, None])


def mix_waveforms(
    waveform: Tensor, num_samples: Tensor, other: Tensor, other_samples: Tensor, weights: Tensor
) -> Tensor:
    """``λ (x - mean x) + (1 - λ) (y - mean y)``, with means over each clip's true length.

    As in CAV-MAE's data loader. What of the other clip lies beyond the first one's end has no effect, since
    the front end looks at the first ``num_samples``.

    Args:
        waveform: (B, S) int16 or float in [-1, 1], zero-padded.
        num_samples: (B,) true lengths.
        other: (B, S) the clips mixed in.
        other_samples: (B,) their true lengths.
        weights: (B,) λ; where it is 1 the result is the first clip alone.

    Returns:
        (B, S) float32 in [-1, 1].
    """
    first, second = _centered(waveform, num_samples), _centered(other, other_samples)
    weights = weights[:, None]
    return weights * first + (1 - weights) * second


def _centered(waveform: Tensor, num_samples: Tensor) -> Tensor:
    scale = 1.0 if waveform.is_floating_point() else 1 / 32768
    inside = torch.arange(waveform.shape[1], device=waveform.device) < num_samples[:, None]
    mean = (waveform.double() * inside).sum(1, keepdim=True) / num_samples.clamp_min(1)[:, None]
    return ((waveform.double() - mean) * scale * inside).float()
