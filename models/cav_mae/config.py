"""What a model is: sizes, masks and presets, checked before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum


class MaskStrategy(StrEnum):
    """Which tokens of the spectrogram are removed together.

    ``random`` removes single patches, ``time`` whole columns (all mel bins of some moments), ``frequency``
    whole rows (some mel bins at all times) and ``time_frequency`` both. Section 4.3 of CAV-MAE (arXiv
    2210.07839) compares them.
    """

    random = "random"
    time = "time"
    frequency = "frequency"
    time_frequency = "time_frequency"


@dataclass(frozen=True)
class MaskConfig:
    """How much of each modality is removed.

    Attributes:
        audio_ratio: Share of the audio tokens removed, in [0, 1).
        visual_ratio: Share of the visual tokens removed, in [0, 1).
        audio_strategy: Which audio tokens go together. Visual tokens are always removed at random.
    """

    audio_ratio: float = 0.75
    visual_ratio: float = 0.75
    audio_strategy: MaskStrategy = MaskStrategy.random

    def __post_init__(self) -> None:
        for name in ("audio_ratio", "visual_ratio"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(
                    f"mask.{name} is {value}; it is the share of tokens removed and must lie in [0, 1)"
                )
        if self.audio_strategy not in set(MaskStrategy):
            known = ", ".join(MaskStrategy)
            raise ValueError(f"mask.audio_strategy is {self.audio_strategy!r}; it must be one of {known}")
        object.__setattr__(self, "audio_strategy", MaskStrategy(self.audio_strategy))


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of a model, all known.

    Attributes:
        embed_dim: Width D of the encoder.
        num_heads: Attention heads of the encoder.
        modality_depth: Blocks of each modality of its own.
        joint_depth: Blocks shared by both modalities, after those.
        decoder_embed_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.
    """

    embed_dim: int
    num_heads: int
    modality_depth: int
    joint_depth: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int


PRESETS = {
    "cav_mae_tiny": Architecture(192, 3, 3, 1, 128, 2, 4),
    "cav_mae_small": Architecture(384, 6, 11, 1, 256, 4, 8),
    "cav_mae_base": Architecture(768, 12, 11, 1, 512, 8, 16),
}


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a misspelt name: says what it is and which known names are nearest."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}; {hint}")


@dataclass(frozen=True)
class ModelConfig:
    """A model by name, with its input's size; every width and depth of the preset can be overridden.

    Attributes:
        name: The preset: cav_mae_tiny, cav_mae_small or cav_mae_base.
        image_size: Height and width of a frame in pixels.
        audio_length: Frames T of the fbank (1024 for 10 s).
        num_mel_bins: Mel bins F of the fbank.
        patch_size: Height and width of a patch, for both modalities.
        embed_dim: Width of the encoder; like all the following ``None`` is the preset's.
        num_heads: Attention heads of the encoder.
        modality_depth: Blocks of each modality of its own.
        joint_depth: Blocks shared by both modalities.
        decoder_embed_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.
        mlp_ratio: Hidden width of an MLP over the block's width.
        layer_norm_eps: Epsilon of every LayerNorm. The published CAV-MAE weights were trained with 1e-5.
        mask: What pretraining removes.
        norm_pix_loss: Whether the reconstruction targets are normalised patch by patch.
        activation_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations.
    """

    name: str = "cav_mae_base"
    image_size: int = 224
    audio_length: int = 1024
    num_mel_bins: int = 128
    patch_size: int = 16
    embed_dim: int | None = None
    num_heads: int | None = None
    modality_depth: int | None = None
    joint_depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    mask: MaskConfig = field(default_factory=MaskConfig)
    norm_pix_loss: bool = True
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.name not in PRESETS:
            raise unknown_name("model", self.name, PRESETS)
        self._check_sizes()
        self._check_architecture()

    @property
    def architecture(self) -> Architecture:
        """The preset with the overrides of this config."""
        chosen = {f.name: getattr(self, f.name) for f in fields(Architecture)}
        return replace(
            PRESETS[self.name], **{name: value for name, value in chosen.items() if value is not None}
        )

    @property
    def audio_grid(self) -> tuple[int, int]:
        """Rows (frequency) and columns (time) of audio patches."""
        return self.num_mel_bins // self.patch_size, self.audio_length // self.patch_size

    @property
    def visual_grid(self) -> tuple[int, int]:
        """Rows and columns of visual patches."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def num_audio_tokens(self) -> int:
        """La, the audio patches of a clip."""
        return self.audio_grid[0] * self.audio_grid[1]

    @property
    def num_visual_tokens(self) -> int:
        """Lv, the visual patches of a frame."""
        return self.visual_grid[0] * self.visual_grid[1]

    @property
    def num_kept_audio(self) -> int:
        """Ka, the audio tokens left by the mask."""
        return int(self.num_audio_tokens * (1 - self.mask.audio_ratio))

    @property
    def num_kept_visual(self) -> int:
        """Kv, the visual tokens left by the mask."""
        return int(self.num_visual_tokens * (1 - self.mask.visual_ratio))

    def _check_sizes(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size is {self.patch_size}; it must be at least 1")
        for name in ("image_size", "audio_length", "num_mel_bins"):
            size = getattr(self, name)
            if size < 1 or size % self.patch_size:
                raise ValueError(
                    f"{name} is {size}; it must be a positive multiple of patch_size {self.patch_size}"
                )
        for name, kept in (("audio", self.num_kept_audio), ("visual", self.num_kept_visual)):
            if kept < 1:
                ratio = getattr(self.mask, f"{name}_ratio")
                raise ValueError(
                    f"mask.{name}_ratio {ratio} leaves no {name} token; lower it or enlarge the input"
                )
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; it must be positive")
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps is {self.layer_norm_eps}; it must be positive")

    def _check_architecture(self) -> None:
        arch = self.architecture
        for f in fields(Architecture):
            least = 0 if f.name in ("modality_depth", "joint_depth") else 1
            if getattr(arch, f.name) < least:
                raise ValueError(f"{f.name} is {getattr(arch, f.name)}; it must be at least {least}")
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(arch, width) % getattr(arch, heads):
                sizes = f"{width} {getattr(arch, width)} must be a multiple of {heads} {getattr(arch, heads)}"
                raise ValueError(f"{sizes} ({self.name} with these overrides)")
            if getattr(arch, width) % 4:
                raise ValueError(
                    f"{width} is {getattr(arch, width)}; 2-D sin-cos positions need a multiple of 4"
                )
