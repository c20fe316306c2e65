"""How alike a sound and a picture are, from the similarities of all their tokens.

``s[k, p, t] = <audio[k, t], visual[k, p]>`` for every head, place and moment of a pair is its **volume**. What is
wanted of all pairs (one number each, mostly) is reduced from it block by block, and the blocks are computed again in
the backward pass, so memory grows with the number of pairs and not with that of pairs × heads × places × moments.

Shape legend: ``A`` sounds, ``V`` pictures, ``B`` clips, ``K`` heads, ``T`` audio tokens, ``P`` places (H·W, row-major),
``C`` channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Values of the volume held at a time: 2^24 float32 are 67 MB.
BLOCK = 1 << 24

#: (a, v, K, P, T) volume and (a, T) weights of the moments -> (a, v, ...) of each pair.
Reduction = Callable[[Tensor, Tensor], Tensor]


T = TypeVar("T")


def recomputed(function: Callable[..., T], *arguments: Tensor) -> T:
    """The function's result, of which only the arguments are kept for the backward pass."""
    return cast(T, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, L, K·C) tokens, head-major channels -> (B, K, L, C)."""
    if tokens.shape[-1] % num_heads:
        raise ValueError(f"a width of {tokens.shape[-1]} can't be shared among {num_heads} heads")
    return rearrange(tokens, "b l (k c) -> b k l c", k=num_heads)


def pair_volumes(audio: Tensor, visual: Tensor) -> Tensor:
    """Every sound with every picture, in float32: (A, K, T, C), (V, K, P, C) -> (A, V, K, P, T)."""
    return torch.einsum("aktc,vkpc->avkpt", audio.float(), visual.float())


def clip_volumes(audio: Tensor, visual: Tensor) -> Tensor:
    """Every clip with itself, in float32: (B, K, T, C), (B, K, P, C) -> (B, K, P, T)."""
    with torch.autocast(audio.device.type, enabled=False):
        return torch.einsum("bktc,bkpc->bkpt", audio.float(), visual.float())


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """``Σ values · weight / max(0.001, Σ weight)`` over the last dimension; 0 where all weights are 0."""
    return (values * weight).sum(-1) / weight.sum(-1).clamp_min(0.001)


def masked_max(values: Tensor, weight: Tensor) -> Tensor:
    """The maximum over the last dimension of what has weight; 0 where nothing has."""
    inside = weight > 0
    highest = values.masked_fill(~inside, torch.finfo(values.dtype).min).amax(-1)
    return highest.masked_fill(~inside.any(-1).expand_as(highest), 0.0)


def highest(volume: Tensor, dim: int) -> Tensor:
    """The maximum over a dimension; the gradient goes to one place, which is three times as fast as `torch.amax`."""
    return volume.squeeze(dim) if volume.shape[dim] == 1 else volume.max(dim).values


def max_space_mean_time(volume: Tensor, weight: Tensor) -> Tensor:
    """``misa``: each moment's best place, and the mean over moments. (..., P, T), (..., T) -> (...)."""
    return weighted_mean(highest(volume, -2), weight)


def max_space_max_time(volume: Tensor, weight: Tensor) -> Tensor:
    """``mima``: the best place and moment."""
    return masked_max(highest(volume, -2), weight)


def mean_space_mean_time(volume: Tensor, weight: Tensor) -> Tensor:
    """``sisa``: the mean over places and moments."""
    return weighted_mean(volume.mean(-2), weight)


def paired_rule(volume: Tensor, weight: Tensor) -> Tensor:
    """``paired``: half each of each moment's best place, and of each place's best moment."""
    best_moment = masked_max(volume, weight.unsqueeze(-2)).mean(-1)
    return (max_space_mean_time(volume, weight) + best_moment) / 2


RULES: dict[str, Reduction] = {
    "misa": max_space_mean_time,
    "mima": max_space_max_time,
    "sisa": mean_space_mean_time,
    "paired": paired_rule,
}


@dataclass(frozen=True)
class SimilarityConfig:
    """How a pair's volume becomes one number.

    Attributes:
        rule: Over places and moments: misa (maximum over places, mean over time: max-mean), mima, sisa, paired.
        heads: ``max_elementwise``: the best head at each place and moment, before the rule; ``max``, ``sum``: over the
            heads' own results.
        nonnegative: Clamp every value of the volume at 0 first.
        mask_silence: Moments of silence do not count (padding never does).
        normalize: Cosines: tokens of length 1 in each head.
    """

    rule: Literal["misa", "mima", "sisa", "paired"] = "misa"
    heads: Literal["max_elementwise", "max", "sum"] = "max_elementwise"
    nonnegative: bool = False
    mask_silence: bool = True
    normalize: bool = False

    def __post_init__(self) -> None:
        for name, known in (("rule", RULES), ("heads", ("max_elementwise", "max", "sum"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"similarity.{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}"
                )

    def prepare(self, tokens: Tensor) -> Tensor:
        """(B, K, L, C) tokens, of length 1 in each head if that is asked for."""
        return F.normalize(tokens.float(), dim=-1) if self.normalize else tokens

    def by_head(self, volume: Tensor, weight: Tensor) -> Tensor:
        """The rule for each head by itself: (a, v, K, P, T), (a, T) -> (a, v, K)."""
        return RULES[self.rule](self.clamp(volume), weight[:, None, None])

    def reduce(self, volume: Tensor, weight: Tensor) -> Tensor:
        """One number a pair: (a, v, K, P, T), (a, T) -> (a, v)."""
        if self.heads == "max_elementwise":
            return RULES[self.rule](highest(self.clamp(volume), 2), weight[:, None])
        by_head = self.by_head(volume, weight)
        return by_head.amax(-1) if self.heads == "max" else by_head.sum(-1)

    def clamp(self, volume: Tensor) -> Tensor:
        """The volume, at 0 or above if that is asked for."""
        return volume.clamp_min(0) if self.nonnegative else volume

    def join_heads(self, volume: Tensor) -> Tensor:
        """What is looked at, of all heads together: (B, K, P, T) -> (B, P, T)."""
        volume = self.clamp(volume)
        return volume.sum(1) if self.heads == "sum" else volume.amax(1)


def reduce_pairs(
    audio: Tensor, visual: Tensor, weight: Tensor, reductions: Sequence[Reduction], block: int = BLOCK
) -> list[Tensor]:
    """Reduces the volume of every sound with every picture, in blocks of pairs.

    ::

        for each sound a, picture v:
            s[k, p, t] = <audio[a, k, t], visual[v, k, p]>
            result[a, v] = reduction(s, weight[a])

    Args:
        audio: (A, K, T, C).
        visual: (V, K, P, C).
        weight: (A, T) how much each moment counts: 0 for padding, and for silence where that is masked.
        reductions: What to compute of each pair; see `SimilarityConfig.reduce`, `NegativeSimilarity`.
        block: Values of the volume held at a time (one pair's at least).

    Returns:
        For each reduction (A, V, ...) float32.
    """

    def of_block(some_audio: Tensor, some_visual: Tensor, some_weight: Tensor) -> tuple[Tensor, ...]:
        volume = pair_volumes(some_audio, some_visual)
        return tuple(reduction(volume, some_weight) for reduction in reductions)

    pair = audio.shape[1] * audio.shape[2] * visual.shape[2]
    columns = max(1, min(len(visual), block // pair))
    rows = max(1, block // (pair * columns))
    with torch.autocast(audio.device.type, enabled=False):
        audio, visual, weight = audio.float(), visual.float(), weight.float()
        found = [
            [recomputed(of_block, a, v, w) for v in visual.split(columns)]
            for a, w in zip(audio.split(rows), weight.split(rows), strict=True)
        ]
        return [
            torch.cat([torch.cat([x[i] for x in row], 1) for row in found]) for i in range(len(reductions))
        ]


def similarities(
    audio: Tensor, visual: Tensor, weight: Tensor, config: SimilarityConfig, block: int = BLOCK
) -> Tensor:
    """(A, V) similarity of every sound with every picture; see `reduce_pairs`."""
    return reduce_pairs(audio, visual, weight, [config.reduce], block)[0]
