"""What every family's config says: the preset and the size of its input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """A model by name, with its input's size. A family's config adds its own settings.

    Attributes:
        name: The preset, such as ``cav_mae_base``; it names the family too.
        image_size: Height and width of a frame in pixels.
        audio_length: Frames T of the fbank (1024 for 10 s).
        num_mel_bins: Mel bins F of the fbank.
        layer_norm_eps: Epsilon of every LayerNorm, the classifier's too.
    """

    name: str = ""
    image_size: int = 224
    audio_length: int = 1024
    num_mel_bins: int = 128
    layer_norm_eps: float = 1e-6

    @property
    def encoder_width(self) -> int:
        """D of the encoder."""
        raise NotImplementedError(f"{type(self).__name__} does not say how wide its encoder is")

    @property
    def encoder_heads(self) -> int:
        """Attention heads of the encoder, which shapes of weights don't tell."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many heads its encoder has")

    @property
    def is_self_contained(self) -> bool:
        """Whether all of its weights are its own, and none in a folder that it names."""
        return True

    @property
    def summary(self) -> str:
        """Its sizes in a line, for people."""
        return f"width {self.encoder_width}, {self.encoder_heads} heads"

    @property
    def num_frames(self) -> int:
        """N, the frames of a clip that the encoder takes at a time."""
        return 1

    @property
    def audio_patch_length(self) -> int:
        """Frames of the fbank in one column of audio patches."""
        raise NotImplementedError(f"{type(self).__name__} does not say how long its audio patches are")


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a misspelt name: says what it is and which known names are nearest."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}; {hint}")
