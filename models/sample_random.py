"""Random numbers that belong to a sample, not to a device, rank or moment.

A counter hash: value n of a stream is SplitMix64 (Steele, Lea and Flood 2014) at counter n, from a key made
of the sample's seed and the stream. Integer arithmetic only, so the numbers are the same on every device, in
a batch or alone, and there is no state to keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

# The constants of SplitMix64, as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


class Stream(IntEnum):
    """What a sample's random numbers are for; each use has a stream of its own."""

    MASK_AUDIO = 1
    MASK_VISUAL = 2
    FBANK_NOISE = 3
    FBANK_NOISE_LEVEL = 4
    FBANK_ROLL = 5
    FRAME_CHOICE = 6
    FREQUENCY_MASK = 20
    TIME_MASK = 21
    AUDIO_TRANSFORM = 60
    AUDIO_TRANSFORM_VALUES = 61
    AUDIO_CROP = 62
    VISUAL_TRANSFORM = 63
    VISUAL_TRANSFORM_VALUES = 64
    VISUAL_CROP = 65
    VISUAL_JITTER_ORDER = 66
    CENTROID = 67
    DRAWN_TOKENS = 70
    DRAWN_SILENCE = 71
    SPLICE_AUDIO = 72
    MIX_PICTURE = 73
    MODALITY_DROPOUT = 80


def pass_stream(stream: Stream, number: int) -> int:
    """The stream of the ``number``-th pass over the same clip; pass 0 is ``stream`` itself."""
    return stream + (number << 8)


def _shift_xor(x: Tensor, bits: int) -> Tensor:
    # torch's >> copies the sign; the mask makes it a logical shift.
    return x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection in which every input bit reaches every output bit."""
    x = _shift_xor(x, 30) * _MIX1
    x = _shift_xor(x, 27) * _MIX2
    return _shift_xor(x, 31)


def uniform(seeds: Tensor, stream: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24.

    Args:
        seeds: (B,) int64, one for each sample.
        stream: What the numbers are for; streams of one seed are independent.
        shape: Shape of one sample's numbers.

    Returns:
        (B, *shape) float32 on the device of the seeds.
    """
    return _fractions(spawn(seeds, stream, math.prod(shape))).reshape(len(seeds), *shape)


def _fractions(bits: Tensor) -> Tensor:
    """The upper 24 bits as multiples of 2^-24 in [0, 1)."""
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def uniforms(seeds: Tensor, draws: Sequence[tuple[int, tuple[int, ...]]]) -> list[Tensor]:
    """`uniform` of several streams at once: the same numbers, in as many operations as one stream takes.

    Args:
        seeds: (B,) int64.
        draws: For each result its stream and the shape of one sample's numbers.

    Returns:
        (B, *shape) float32 for each of ``draws``.
    """
    counts = [math.prod(shape) for _, shape in draws]
    base = _mix(seeds + _GOLDEN)
    keys = _mix(torch.stack([base + stream for stream, _ in draws], dim=1))
    first = torch.cat([keys[:, i, None].expand(-1, count) for i, count in enumerate(counts)], dim=1)
    counter = torch.cat([torch.arange(1, count + 1, device=seeds.device) for count in counts])
    values = _fractions(_mix(first + counter * _GOLDEN))
    parts = zip(values.split(counts, dim=1), draws, strict=True)
    return [part.reshape(len(seeds), *shape) for part, (_, shape) in parts]


def spawn(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Seeds of ``count`` things that belong to each sample, each with streams of its own.

    Args:
        seeds: (B,) int64, one for each sample.
        stream: What the things are.
        count: How many of them.

    Returns:
        (B, count) int64.
    """
    key = _mix(_mix(seeds + _GOLDEN) + stream)[:, None]
    counter = torch.arange(1, count + 1, device=seeds.device)
    return _mix(key + counter * _GOLDEN)
