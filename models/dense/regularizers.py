"""The regularisers of dense grounding, each by itself, before its weight, in float32.

Each docstring is the definition that the tests compare with. **P** is the volume of each clip with itself,
(B, K, P, T), times the mask of sound, and clamped at 0 where similarities are. Sources: DenseAV (Hamilton et al.,
arXiv 2406.05629), and for `NegativeSimilarity` the public max-mean baseline (AV-Align).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from models.dense.similarity import recomputed


def nonnegativity(audio: Tensor, visual: Tensor) -> Tensor:
    """``mean over k, i, j of min(0, <audio[i, k], visual[j, k]>)²`` of some drawn tokens, every pair of them.

    Args:
        audio: (n, K, C).
        visual: (m, K, C).
    """
    return torch.einsum("ikc,jkc->ijk", audio, visual).clamp_max(0).square().mean()


def silence(
    silent: Tensor, weight: Tensor, visual: Tensor, penalty: Callable[[Tensor], Tensor] = torch.abs
) -> Tensor:
    """What silence has in common with pictures: ``mean of |s|`` (or of ``s²``) of silent tokens with all places.

    ::

        mean over tokens n with weight[n] = 1, clips b, heads k, places p
            of penalty(<silent[n, k], visual[b, k, p]>)

    One picture at a time, recomputed in the backward pass.

    Args:
        silent: (n, K, C) drawn tokens.
        weight: (n,) 1, or 0 for a token that is none (fewer are silent than were to be drawn).
        visual: (B, K, P, C).
        penalty: Of each similarity, itself clamped first where similarities are.

    Returns:
        (); 0 where nothing is silent.
    """

    def of_picture(tokens: Tensor, picture: Tensor, weight: Tensor) -> Tensor:
        return penalty(torch.einsum("nkc,kpc->nkp", tokens, picture)).mean((1, 2)) @ weight

    total = torch.stack([recomputed(of_picture, silent, picture, weight) for picture in visual])
    return total.mean() / weight.sum().clamp_min(1)


def _weighted_square(volume: Tensor, weight: Tensor) -> Tensor:
    """``Σ (P² · q) / max(0.1, Σ q)``, with q spread over P's shape."""
    weight = weight.expand_as(volume)
    return (volume.square() * weight).sum() / weight.sum().clamp_min(0.1)


def spliced_audio(volume: Tensor, own: Tensor, sound: Tensor) -> Tensor:
    """The picture should not answer to sound spliced in from another clip.

    ::

        q[b, t] = (1 - own[b, t]) · sound[b, t], the same for every head and place
        Σ P² · q / max(0.1, Σ q)

    Args:
        volume: (B, K, P, T).
        own: (B, T) in 0 … 1, 1 = the clip's own sound.
        sound: (B, T), 1 = there is sound.
    """
    return _weighted_square(volume, ((1 - own) * sound)[:, None, None])


def mixed_picture(volume: Tensor, own: Tensor) -> Tensor:
    """The sound should not answer to patches put in from another picture.

    ::

        o[b, p] = 1 - own[b, p], the same for every head and moment
        Σ (P · o)² / max(0.1, Σ o)

    Args:
        volume: (B, K, P, T).
        own: (B, P) in 0 … 1, 1 = the clip's own picture.
    """
    other = (1 - own)[:, None, :, None].expand_as(volume)
    return (volume * other).square().sum() / other.sum().clamp_min(0.1)


def total_variation(volume: Tensor) -> Tensor:
    """``mean over b, k, p and t of (P[t + 1] - P[t])²``: heat moves smoothly in time. 0 for one moment."""
    if volume.shape[-1] < 2:
        return volume.new_zeros(())
    return volume.diff(dim=-1).square().mean()


def specialization(volume: Tensor) -> Tensor:
    """``mean over pairs of heads i < j of mean(|P[i]| · |P[j]|)``: one head at a place and moment. 0 for one head."""
    pairs = list(combinations(range(volume.shape[1]), 2))
    if not pairs:
        return volume.new_zeros(())
    size = volume.abs()
    return torch.stack([(size[:, i] * size[:, j]).mean() for i, j in pairs]).mean()


def disentangling(volume: Tensor, source: Tensor) -> Tensor:
    """The first half of the heads for clips of data set 0, the second for those of 1.

    ::

        mean over b, p, t of (Σ over the heads k of the *other* set's half of P[b, k, p, t])²

    Args:
        volume: (B, K, P, T), K even.
        source: (B,) int64, 0 or 1.
    """
    if volume.shape[1] % 2:
        raise ValueError(f"disentangling needs an even number of heads, not {volume.shape[1]}")
    halves = volume.unflatten(1, (2, -1)).sum(2)  # (B, 2, P, T)
    other = (1 - source)[:, None, None, None].expand(-1, 1, *volume.shape[2:])
    return halves.gather(1, other).square().mean()


@dataclass(frozen=True)
class NegativeSimilarity:
    """Max-mean's pressure against negative similarity, of every pair; a reduction of `reduce_pairs`.

    ::

        of pair a, v: mean over k, p and weighted t of clamp(factor · s[k, p, t], floor, 0)²

    Attributes:
        factor: () or (1,) what similarities are multiplied by: 1 / T.
        floor: Below it there is no more pressure.
    """

    factor: Tensor
    floor: float = -20.0

    def __call__(self, volume: Tensor, weight: Tensor) -> Tensor:
        """(a, v, K, P, T), (a, T) -> (a, v)."""
        pressure = (self.factor * volume).clamp(self.floor, 0).square().mean((2, 3))
        return (pressure * weight[:, None]).sum(-1) / weight.sum(-1).clamp_min(0.001)[:, None]
