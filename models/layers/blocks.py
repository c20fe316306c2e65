"""Transformer blocks: the plain pre-norm block, and the joint one with norms of its own for each stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(q kᵀ / √d) v`` for each head: three times (B, heads, L, d) -> (B, heads, L, d).

    With a mask, (B, 1, 1, L) bool, only tokens where it is true are attended to; of each clip there must be one.

    Fused, except in bfloat16 on a CPU: there the fused kernel's backward pass is slower than in float32, and
    plain products of one sample at a time, whose scores stay in the cache, take less than half its time. They are
    made contiguous before, since every product of both passes would else copy its part.
    """
    if mask is None and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        parts = ((q * q.shape[-1] ** -0.5).contiguous(), k.contiguous(), v.contiguous())
        samples = zip(*(part.unbind() for part in parts), strict=True)
        return torch.stack([(q1 @ k1.mT).softmax(dim=-1) @ v1 for q1, k1, v1 in samples])
    return F.scaled_dot_product_attention(q, k, v, mask)


def run_block(block: Callable[[T], T], x: T, recompute: bool) -> T:
    """One block, in which nothing is random, its activations recomputed in the backward pass if asked for."""
    if recompute and torch.is_grad_enabled():
        return cast(T, checkpoint(block, x, use_reentrant=False, preserve_rng_state=False))
    return block(x)


def run_blocks(blocks: Iterable[Callable[[T], T]], x: T, recompute: bool) -> T:
    """One block after the other; see `run_block`."""
    for block in blocks:
        x = run_block(block, x, recompute)
    return x


def init_weights(module: nn.Module) -> None:
    """The published initialisation: Xavier-uniform linear layers, norms of 1 and 0. For ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Makes every `Block` and `JointBlock` of a model go through torch.compile when it is called next.

    Blocks share their code, so a graph serves all of one shape; what lies between them (masks, losses, other models'
    towers) stays as it is. Each shape has a graph of its own, since one for any shape is slower: compute what has other
    shapes than training's under ``torch.compiler.set_stance("force_eager")``.

    Args:
        model: Changed in place.
        backend: Of ``torch.compile``.
    """
    for module in model.modules():
        if isinstance(module, Block | JointBlock):
            module.compile(backend=backend, dynamic=False)


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: Width D.
        num_heads: Heads; D is a multiple of it.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); a mask as of `attend`."""
        q, k, v = self._heads(x)
        return self.proj(attend(q, k, v, mask).transpose(1, 2).reshape(x.shape))

    def to_first(self, x: Tensor) -> Tensor:
        """How much each token attends to the first, mean over heads: (B, L, D) -> (B, L) float32."""
        q, k, _ = self._heads(x)
        with torch.autocast(x.device.type, enabled=False):
            scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT
        return scores.softmax(dim=-1)[..., 0].mean(dim=1)

    def _heads(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values: (B, L, D) -> three times (B, heads, L, d)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        return [x.transpose(1, 2) for x in qkv.unbind(2)]


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); a mask as of `attend`."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


@dataclass(frozen=True)
class Streams:
    """The passes through the joint blocks; those not asked for are None.

    Attributes:
        joint: (B, Ka + Kv, D) all tokens of the modalities present, audio first.
        audio: (B, Ka, D) audio tokens alone.
        visual: (B, Kv, D) visual tokens alone.
    """

    joint: Tensor | None = None
    audio: Tensor | None = None
    visual: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Streams:
        """The function of each stream there is."""
        values = (self.joint, self.audio, self.visual)
        return Streams(*(None if x is None else function(x) for x in values))

    def __add__(self, other: Streams) -> Streams:
        pairs = ((self.joint, other.joint), (self.audio, other.audio), (self.visual, other.visual))
        return Streams(*(None if x is None or y is None else x + y for x, y in pairs))


class StreamNorm(nn.Module):
    """A LayerNorm for each stream, with weights of its own."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.joint = nn.LayerNorm(dim, eps=eps)
        self.audio = nn.LayerNorm(dim, eps=eps)
        self.visual = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Streams) -> Streams:
        """Each stream there is, normalised."""
        return Streams(
            joint=None if x.joint is None else self.joint(x.joint),
            audio=None if x.audio is None else self.audio(x.audio),
            visual=None if x.visual is None else self.visual(x.visual),
        )


class JointBlock(nn.Module):
    """A block whose attention and MLP all streams share while each keeps its own norms."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = StreamNorm(dim, eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = StreamNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Streams) -> Streams:
        """Each stream there is through the block; no stream sees another."""
        x = x + self.norm1(x).map(self.attn)
        return x + self.norm2(x).map(self.mlp)
