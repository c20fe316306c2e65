"""Pictures for a person to look at: what went in, what was kept of it, what the model made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

# Black, violet, red, orange, pale yellow: brightness rises with the value.
_COLOURS = torch.tensor(
    [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]],
    dtype=torch.float32,
)
_GAP = 4
_HEADER = 14


@dataclass(frozen=True)
class Patches:
    """What a masked autoencoder made of one modality.

    Attributes:
        target: (B, L, P) the true patches.
        prediction: (B, L, P) as predicted.
        mask: (B, L) 1 = removed.
        normalised: Whether each patch was predicted less its mean and over its deviation.
    """

    target: Tensor
    prediction: Tensor
    mask: Tensor
    normalised: bool

    def titles(self) -> list[str]:
        """Of the three columns: input, what the mask leaves, reconstruction."""
        return ["input", f"kept {1 - self.mask.mean().item():.0%}", "reconstruction"]

    def kept(self) -> Tensor:
        """(B, L, P) the kept patches on a dark ground."""
        ground = self.target.amin(dim=(1, 2), keepdim=True).expand_as(self.target)
        return torch.where(self.mask.unsqueeze(-1).bool(), ground, self.target)

    def reconstructed(self) -> Tensor:
        """(B, L, P) removed patches as predicted, with the true patches' mean and deviation; kept ones as they were."""
        prediction = self.prediction.float()
        if self.normalised:
            variance, mean = torch.var_mean(self.target, dim=-1, keepdim=True)
            prediction = prediction * (variance + 1e-6).sqrt() + mean
        return torch.where(self.mask.unsqueeze(-1).bool(), prediction, self.target)


#: (B, L, P) patches -> frames or spectrograms.
Unpatchify = Callable[[Tensor], Tensor]


def frame_sheet(frames: Tensor, patches: Patches, unpatchify: Unpatchify, invert: Unpatchify) -> Tensor:
    """A row a clip: input, what the mask leaves, reconstruction.

    Args:
        frames: (B, 3, H, W) normalised.
        patches: Of these.
        unpatchify: Patches -> frames.
        invert: Normalised frames -> uint8.

    Returns:
        (3, H', W') uint8 on the CPU.
    """
    columns = [frames, unpatchify(patches.kept()), unpatchify(patches.reconstructed())]
    return grid([invert(column) for column in columns], patches.titles())


def spectrogram_sheet(fbank: Tensor, patches: Patches, unpatchify: Unpatchify) -> Tensor:
    """The same of (B, T, F) spectrograms."""
    low, high = _own_range(fbank)
    columns = [fbank, unpatchify(patches.kept()), unpatchify(patches.reconstructed())]
    return grid([colour_spectrogram(column, low, high) for column in columns], patches.titles())


def film_sheet(films: Tensor, patches: Patches, unpatchify: Unpatchify, invert: Unpatchify) -> Tensor:
    """Three rows a clip: its frames, what the mask leaves of them, their reconstruction.

    Args:
        films: (B, N, 3, H, W) normalised.
        patches: Of these.
        unpatchify: Patches -> films.
        invert: Normalised frames -> uint8.

    Returns:
        (3, H', W') uint8 on the CPU, a column a frame.
    """
    return film_rows(
        [invert(x) for x in (films, unpatchify(patches.kept()), unpatchify(patches.reconstructed()))]
    )


def film_rows(films: Sequence[Tensor]) -> Tensor:
    """Films of the same clips, each (B, N, 3, H, W) uint8, one below the other clip by clip; a column a frame."""
    columns = torch.stack(list(films), dim=1).flatten(0, 1).unbind(dim=1)
    return grid(list(columns), [f"frame {i + 1}" for i in range(len(columns))])


def own_colours(fbank: Tensor) -> Tensor:
    """(B, T, F) -> (B, 3, F, T) uint8, each spectrogram over its own range."""
    return colour_spectrogram(fbank, *_own_range(fbank))


def _own_range(fbank: Tensor) -> tuple[Tensor, Tensor]:
    return fbank.flatten(1).quantile(0.01, dim=1), fbank.flatten(1).quantile(0.995, dim=1)


def colour_spectrogram(fbank: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(B, T, F) -> (B, 3, F, T) uint8, low frequencies at the bottom; ``low`` and ``high`` (B,) are black and white."""
    low, high = low[:, None, None], high[:, None, None]
    position = ((fbank - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) * (len(_COLOURS) - 1)
    below = position.long().clamp(max=len(_COLOURS) - 2)
    colours = _COLOURS.to(fbank.device)
    share = (position - below).unsqueeze(-1)
    coloured = colours[below] * (1 - share) + colours[below + 1] * share
    return coloured.round().byte().permute(0, 3, 2, 1).flip(2)


def grid(columns: list[Tensor], titles: list[str]) -> Tensor:
    """Columns of pictures under their titles.

    Args:
        columns: Each (B, 3, H, W) uint8.
        titles: One for each column.

    Returns:
        (3, H', W') uint8 on the CPU.
    """
    height, width = columns[0].shape[2:]
    sheet = Image.new(
        "RGB",
        (len(columns) * (width + _GAP) + _GAP, _HEADER + len(columns[0]) * (height + _GAP) + _GAP),
        (40, 40, 40),
    )
    draw = ImageDraw.Draw(sheet)
    for i, (pictures, title) in enumerate(zip(columns, titles, strict=True)):
        left = _GAP + i * (width + _GAP)
        draw.text((left, 1), title, fill=(230, 230, 230))
        for j, picture in enumerate(pictures.cpu()):
            pixels = Image.fromarray(picture.permute(1, 2, 0).numpy())
            sheet.paste(pixels, (left, _HEADER + j * (height + _GAP)))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()
