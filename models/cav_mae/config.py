"""CAV-MAE's sizes and presets, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from models.config import ModelConfig, unknown_name
from models.layers.masking import MaskConfig, num_kept


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
PURPOSES = {
    "cav_mae_tiny": "for trying things on a laptop: width 192, 3 + 1 blocks, decoder 2 blocks of 128",
    "cav_mae_small": "ViT-S: width 384, 11 + 1 blocks, decoder 4 blocks of 256",
    "cav_mae_base": "ViT-B, the published CAV-MAE: width 768, 11 + 1 blocks, decoder 8 blocks of 512",
}


@dataclass(frozen=True)
class CavMaeModelConfig(ModelConfig):
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
        mask: What pretraining removes.
        norm_pix_loss: Whether the reconstruction targets are normalised patch by patch.
        activation_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations.
    """

    name: str = "cav_mae_base"
    patch_size: int = 16
    embed_dim: int | None = None
    num_heads: int | None = None
    modality_depth: int | None = None
    joint_depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    mlp_ratio: float = 4.0
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
    def encoder_width(self) -> int:
        """See `ModelConfig.encoder_width`."""
        return self.architecture.embed_dim

    @property
    def encoder_heads(self) -> int:
        """See `ModelConfig.encoder_heads`."""
        return self.architecture.num_heads

    @property
    def summary(self) -> str:
        """See `ModelConfig.summary`."""
        arch = self.architecture
        return (
            f"{super().summary}, {arch.modality_depth} blocks for each modality and {arch.joint_depth} joint"
        )

    @property
    def audio_patch_length(self) -> int:
        """See `ModelConfig.audio_patch_length`."""
        return self.patch_size

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
        return num_kept(self.num_audio_tokens, self.mask.audio_ratio)

    @property
    def num_kept_visual(self) -> int:
        """Kv, the visual tokens left by the mask."""
        return num_kept(self.num_visual_tokens, self.mask.visual_ratio)

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
