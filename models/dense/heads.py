"""From a tower's tokens to tokens of the common width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from models.dense.config import ATTENTION_HEADS, HeadConfig
from models.towers import Tokens
from models.towers.base import first

#: Moments that a time convolution joins to one.
_JOINED = 3


def _attention_block(width: int) -> nn.TransformerEncoderLayer:
    """A pre-norm transformer block that can leave padding out."""
    settings = {"dropout": 0.0, "activation": "gelu", "layer_norm_eps": 1e-4}
    return nn.TransformerEncoderLayer(
        width, ATTENTION_HEADS, 4 * width, batch_first=True, norm_first=True, **settings
    )


class VisualHead(nn.Module):
    """A LayerNorm, a linear layer, and in training the mean of squares of tokens.

    Args:
        inputs: Width of the tower's tokens.
        width: The common width.
        config: Which of these.
    """

    def __init__(self, inputs: int, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.pool = config.pool
        self.norm = nn.LayerNorm(inputs, eps=1e-4) if config.norm else nn.Identity()
        self.proj = nn.Linear(inputs, width)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of the grid (N, H, W) -> likewise, H and W divided by the pool's side in training."""
        values = self.proj(self.norm(tokens.values))
        if self.training and self.pool > 1:
            return self._pooled(values, tokens.grid)
        return Tokens(values, tokens.mask, tokens.grid)

    def _pooled(self, values: Tensor, grid: tuple[int, ...]) -> Tokens:
        frames, height, width = grid
        side = self.pool
        if height < side or width < side:
            raise ValueError(
                f"a picture of {height} x {width} tokens can't be pooled in squares of {side}: set "
                "model.visual_head.pool to 1, or model.image_size higher"
            )
        pictures = rearrange(values, "b (n h w) d -> (b n) d h w", n=frames, h=height, w=width)
        pooled = F.avg_pool2d(pictures, side)
        values = rearrange(pooled, "(b n) d h w -> b (n h w) d", n=frames)
        mask = values.new_ones(values.shape[:2]).bool()
        return Tokens(values, mask, (frames, height // side, width // side))


class AudioHead(nn.Module):
    """A LayerNorm, a linear layer or convolutions that join moments, and a transformer block, over moments alone.

    A spectrogram's frequencies are averaged. Convolutions do not overlap; what is behind a clip's end is zero for them.

    Args:
        inputs: Width of the tower's tokens.
        width: The common width.
        config: Which of these.
    """

    def __init__(self, inputs: int, width: int, config: HeadConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs, eps=1e-4) if config.norm else nn.Identity()
        sizes = [inputs, *[width] * config.time_convs]
        self.convs = nn.ModuleList(nn.Linear(_JOINED * size, width) for size in sizes[: config.time_convs])
        self.proj = nn.Identity() if config.time_convs else nn.Linear(inputs, width)
        self.block = _attention_block(width) if config.attention else None
        self.cls = nn.Parameter(torch.randn(width)) if config.attention else None

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of the grid (T,) or (F, T) -> tokens of the grid (T',)."""
        length = tokens.grid[-1]
        values = reduce(self.norm(tokens.values), "b (f t) d -> b t d", "mean", t=length)
        mask = reduce(tokens.mask, "b (f t) -> b t", "max", t=length)
        for conv in self.convs:
            values, mask = self._joined(values, mask)
            values = conv(values)
        values = self.proj(values)
        if self.block is not None and self.cls is not None:
            cls = repeat(self.cls, "d -> b 1 d", b=len(values))
            seen = F.pad(mask, (1, 0), value=True)
            together = torch.cat([cls.to(values.dtype), values], dim=1)
            values = self.block(together, src_key_padding_mask=~seen)[:, 1:]
        return Tokens(values, mask, (values.shape[1],))

    @staticmethod
    def _joined(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, ceil(T / 3), 3·D); a joined moment is real if any of its three is."""
        missing = -values.shape[1] % _JOINED
        values = F.pad(values.masked_fill(~mask[..., None], 0.0), (0, 0, 0, missing))
        count = (mask.sum(1) + _JOINED - 1) // _JOINED
        values = rearrange(values, "b (t j) d -> b t (j d)", j=_JOINED)
        return values, first(count, values.shape[1])
