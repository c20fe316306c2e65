"""From a clip's tokens to one vector. Padding never counts; a clip without any token gives a vector that means nothing.

Tokens come on a grid (T, P) of moments and places (`on_timeline`); all is computed in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.fusion.config import TowerConfig
from models.towers import Tokens

_LEAST = 1e-6


def on_timeline(tokens: Tokens, modality: str) -> Tokens:
    """The same tokens on the grid (T, P), moment by moment; zeros in place of padding.

    Args:
        tokens: Of the grid (T,) or, of sound, (F, T), or of frames (N, H, W) or (H, W).
        modality: Whose they are.
    """
    values, mask = tokens.values.masked_fill(~tokens.mask[..., None], 0.0), tokens.mask
    grid = tokens.grid
    if modality == "audio" and len(grid) == 2:
        values = rearrange(values, "b (f t) d -> b (t f) d", f=grid[0])
        mask = rearrange(mask, "b (f t) -> b (t f)", f=grid[0])
        return Tokens(values, mask, (grid[1], grid[0]), tokens.cls)
    moments = 1 if modality == "visual" and len(grid) == 2 else grid[0]
    return Tokens(values, mask, (moments, values.shape[1] // moments), tokens.cls)


def masked_softmax(scores: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the places where the mask is true; 0 elsewhere, and where it is true nowhere."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim) * mask


class Pooling(nn.Module, ABC):
    """Pools tokens of a width.

    Args:
        width: D of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, `width`) float32."""
        with torch.autocast(tokens.values.device.type, enabled=False):
            return self.pool(tokens)

    @abstractmethod
    def pool(self, tokens: Tokens) -> Tensor:
        """As of ``forward``, which switches autocast off."""


class Mean(Pooling):
    """``Σ x / n``."""

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`."""
        return tokens.mean()


class Cls(Pooling):
    """The class token."""

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`.

        Raises:
            ValueError: The tower has none.
        """
        if tokens.cls is None:
            raise ValueError(
                "pooling cls needs a tower with a class token, and this one has none: use another pooling"
            )
        return tokens.cls.float()


class Attention(Pooling):
    """``Σ softmax(q · x / √D) x`` with a learned q, at first 0: the mean."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.query = nn.Parameter(torch.zeros(width))

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`."""
        values = tokens.values.float()
        return _attended(values, tokens.mask, self.query, dim=1)[0]


class Gem(Pooling):
    """``(Σ max(x, 1e-6)^p / n)^(1/p)`` (generalised mean, Radenović et al. 2018) with a learned p, at first 3."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.power = nn.Parameter(torch.tensor([3.0]))  # DeepSpeed takes no parameter without a dimension

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`."""
        raised = tokens.values.float().clamp_min(_LEAST).pow(self.power)
        mean = Tokens(raised, tokens.mask, tokens.grid).mean()
        # Of a clip without tokens the mean is 0, and so far down a root has no finite slope.
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).pow(1 / self.power)


class NetVlad(Pooling):
    """NetVLAD (Arandjelović et al. 2016): what tokens are beside learned centres.

    ::

        v_k = Σ softmax_k(w_k · x + b_k) (x - c_k)      # over tokens
        each v_k to length 1, all side by side, the whole to length 1

    Args:
        width: D of the tokens; the vector is K times as wide.
        clusters: K.
    """

    def __init__(self, width: int, clusters: int) -> None:
        super().__init__(width * clusters)
        self.assign = nn.Linear(width, clusters)
        self.centres = nn.Parameter(torch.randn(clusters, width) * width**-0.5)

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`."""
        values = tokens.values.float()
        share = self.assign(values).softmax(2) * tokens.mask[..., None]
        summed = torch.einsum("blk,bld->bkd", share, values) - share.sum(1)[..., None] * self.centres
        return F.normalize(F.normalize(summed, dim=2).flatten(1), dim=1)


class TimeThenSpace(Pooling):
    """Attention over the moments of each place, then over the places; each with a learned query, at first 0."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.time_query = nn.Parameter(torch.zeros(width))
        self.space_query = nn.Parameter(torch.zeros(width))

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`."""
        values, mask = _unfolded(tokens)
        places, some = _attended(values, mask, self.time_query, dim=1)
        return _attended(places, some, self.space_query, dim=1)[0]


class SpaceThenTime(TimeThenSpace):
    """Attention over the places of each moment, then over the moments; likewise."""

    def pool(self, tokens: Tokens) -> Tensor:
        """See `Pooling`."""
        values, mask = _unfolded(tokens)
        moments, some = _attended(values, mask, self.space_query, dim=2)
        return _attended(moments, some, self.time_query, dim=1)[0]


def _unfolded(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """(B, T, P, D) float32 and (B, T, P)."""
    moments = tokens.grid[0]
    return tokens.values.float().unflatten(1, (moments, -1)), tokens.mask.unflatten(1, (moments, -1))


def _attended(values: Tensor, mask: Tensor, query: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The attention-weighted mean along ``dim``, and where there was anything to attend to."""
    scores = (values @ query) * query.shape[0] ** -0.5
    weights = masked_softmax(scores, mask, dim)
    return (weights[..., None] * values).sum(dim), mask.any(dim)


POOLINGS: dict[str, Callable[[int, TowerConfig], Pooling]] = {
    "mean": lambda width, config: Mean(width),
    "cls": lambda width, config: Cls(width),
    "attention": lambda width, config: Attention(width),
    "gem": lambda width, config: Gem(width),
    "netvlad": lambda width, config: NetVlad(width, config.clusters),
    "time_then_space": lambda width, config: TimeThenSpace(width),
    "space_then_time": lambda width, config: SpaceThenTime(width),
}
"""By name: from the tokens' width and the tower's settings."""
