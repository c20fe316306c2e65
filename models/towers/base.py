"""What a tower is: a module that turns one modality into tokens of which it is known where they lie and which are real.

Whatever is built on towers (dense similarities, pooling, fusion) sees `Tokens` and nothing else of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from models.frontend import AudioFrontEnd

Input = TypeVar("Input")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of clips.

    A real token's values depend on its own clip alone: neither on padding nor on what else is in the batch.

    Attributes:
        values: (B, L, D).
        mask: (B, L) bool, true for real tokens, false for padding (whose values mean nothing).
        grid: Sizes whose product is L, row-major: (T,) of moments, (F, T) of a spectrogram's patches, (H, W) of a
            picture's, (N, H, W) of several pictures'.
        cls: (B, D) the class token, where the tower has one.
    """

    values: Tensor
    mask: Tensor
    grid: tuple[int, ...]
    cls: Tensor | None = None

    def mean(self) -> Tensor:
        """(B, D) float32 mean over the real tokens; 0 for a clip without any."""
        mask = self.mask.unsqueeze(2)
        total = self.values.float().masked_fill(~mask, 0.0).sum(1)
        return total / mask.sum(1).clamp_min(1)


@dataclass(frozen=True)
class Sound:
    """The sounds of a batch, as waveforms and as spectrograms: each tower takes what it was made for.

    One of the two forms may be absent; a tower that needs it says so.

    Attributes:
        waveform: (B, S) int16, or float in [-1, 1], padded to S.
        num_samples: (B,) int64 true lengths.
        fbank: (B, T, F) normalised log-mel.
        num_frames: (B,) int64 spectrogram frames that hold sound, at least 1; None where all do.
    """

    waveform: Tensor | None = None
    num_samples: Tensor | None = None
    fbank: Tensor | None = None
    num_frames: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, front_end: AudioFrontEnd, waveform: Tensor, num_samples: Tensor) -> Sound:
        """Makes the spectrograms; what is longer than these is cut, what is shorter is padded to their length."""
        config = front_end.config
        missing = config.num_samples - waveform.shape[1]
        waveform = torch.nn.functional.pad(waveform, (0, missing))  # a negative number cuts
        num_samples = num_samples.clamp_max(config.num_samples)
        frames = (num_samples - config.frame_length) // config.frame_shift + 1
        fbank = front_end(waveform, num_samples)
        return cls(waveform, num_samples, fbank, frames.clamp(1, config.target_length))


@dataclass(frozen=True)
class Words:
    """The texts of a batch, as a tower's own tokenizer cuts them.

    Attributes:
        ids: (B, L) int64 places in its vocabulary.
        mask: (B, L) bool, true for pieces of the text, false for padding. The first of each row is true.
    """

    ids: Tensor
    mask: Tensor


class Tower(nn.Module, ABC, Generic[Input]):
    """Turns inputs into tokens.

    Attributes:
        width: D of the tokens.
    """

    width: int

    @abstractmethod
    def forward(self, inputs: Input) -> Tokens:
        """The tokens of a batch."""

    def keep(self, folder: Path) -> None:
        """Writes into a folder that is there what, with the weights, makes the tower again without its source.

        Nothing for a tower that its config alone describes.
        """


class AudioTower(Tower[Sound]):
    """A tower for sound. Its tokens cover the padded clip evenly: token t of T begins at t / T of it.

    Attributes:
        sample_rate: Hz of the waveforms that it hears; None where it hears spectrograms.
    """

    sample_rate: int | None = None


class VisualTower(Tower[Tensor]):
    """A tower for pictures: takes (B, N, 3, H, W) float32, normalised by ImageNet's mean and deviation.

    Attributes:
        num_frames: N that it takes; None for any.
    """

    num_frames: int | None = None

    def check_size(self, side: int) -> None:
        """Raises ``ValueError``, naming the setting, if pictures of ``side`` pixels are not for it."""


class TextTower(Tower[Words]):
    """A tower for text, with a tokenizer of its own.

    Attributes:
        max_length: Pieces of a text that it takes; what is longer is cut.
    """

    max_length: int

    @abstractmethod
    def tokenize(self, texts: Sequence[str | None]) -> Words:
        """The texts in pieces, on the CPU; of a text that is None or empty nothing but what marks its beginning."""


def first(counts: Tensor, length: int) -> Tensor:
    """(B,) counts -> (B, length) bool, true for the first ones of each row."""
    return torch.arange(length, device=counts.device) < counts[:, None]
