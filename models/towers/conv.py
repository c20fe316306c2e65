"""Small convolutional towers, randomly initialised: they learn to see and hear in minutes on a laptop.

Strided 3×3 convolutions with LayerNorms over channels. Neighbouring tokens share little of their input, so what a token
says is about its own place.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.towers.base import AudioTower, Sound, Tokens, VisualTower, first

#: Halvings of the input's sides: a token covers 8 × 8 pixels, or 8 frames of a spectrogram.
HALVINGS = 3
STRIDE = 2**HALVINGS


class ConvNormAct(nn.Module):
    """A 3×3 convolution, a LayerNorm over the channels of each place, a GELU.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: 2 halves the sides (rounding up).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm = nn.LayerNorm(outputs, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        x = self.norm(rearrange(self.conv(x), "b c h w -> b h w c"))
        return F.gelu(rearrange(x, "b h w c -> b c h w"))


def _layers(inputs: int, width: int, extra: int) -> nn.ModuleList:
    """Halving layers up to ``width`` channels, then ``extra`` ones that keep the size."""
    widths = [inputs, *(width // 2**n for n in reversed(range(HALVINGS)))]
    halving = [ConvNormAct(a, b, 2) for a, b in pairwise(widths)]
    return nn.ModuleList([*halving, *(ConvNormAct(width, width) for _ in range(extra))])


class ConvVisualTower(VisualTower):
    """A token for every 8 × 8 pixels.

    Args:
        width: D, a multiple of 4.
        depth: Layers behind the halving ones.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.layers = _layers(3, width, depth)

    def forward(self, inputs: Tensor) -> Tokens:
        """(B, N, 3, H, W) -> tokens of the grid (N, H / 8, W / 8)."""
        x = rearrange(inputs, "b n c h w -> (b n) c h w")
        for layer in self.layers:
            x = layer(x)
        grid = (inputs.shape[1], *x.shape[2:])
        values = rearrange(x, "(b n) d h w -> b (n h w) d", n=grid[0])
        return Tokens(values, values.new_ones(values.shape[:2]).bool(), grid)


class ConvAudioTower(AudioTower):
    """A token for every 8 frames of the spectrogram (80 ms).

    Padding is zero before every layer, as the zeros around a clip that ends there are.

    Args:
        width: D, a multiple of 4; half of it are the channels before all frequencies are joined.
        depth: Layers behind the halving ones.
        num_mel_bins: F of the spectrogram, a multiple of 8.
    """

    def __init__(self, width: int, depth: int, num_mel_bins: int) -> None:
        super().__init__()
        self.width = width
        self.layers = _layers(1, width // 2, depth)
        self.join = nn.Linear(width // 2 * (num_mel_bins // STRIDE), width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, inputs: Sound) -> Tokens:
        """Tokens of the grid (T / 8,), rounded up."""
        if inputs.fbank is None:
            raise ValueError(
                "this tower hears spectrograms, and was given a waveform alone: make its input with Sound.of"
            )
        x = rearrange(inputs.fbank, "b t f -> b 1 t f")
        count = inputs.num_frames
        if count is None:
            count = torch.full((len(x),), x.shape[2], device=x.device)
        for n, layer in enumerate(self.layers):
            x = layer(x * first(count, x.shape[2])[:, None, :, None])
            count = (count + 1) // 2 if n < HALVINGS else count
        values = F.gelu(self.norm(self.join(rearrange(x, "b c t f -> b t (c f)"))))
        return Tokens(values, first(count, values.shape[1]), (values.shape[1],))
