"""What an EquiAV model is: towers, predictor and heads, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from models.config import ModelConfig, unknown_name


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of a model, all known.

    Attributes:
        embed_dim: Width D of both towers.
        num_heads: Attention heads of the towers.
        modality_depth: Blocks of each tower.
        transform_dim: Width of an encoded transformation, the query of the predictor.
        predictor_heads: Attention heads of the predictor.
        predictor_head_dim: Width of each of these.
        projection_dim: Hidden width of the projection heads.
        intra_dim: Width of the heads within a modality.
        inter_dim: Width of the heads across modalities.
    """

    embed_dim: int
    num_heads: int
    modality_depth: int
    transform_dim: int
    predictor_heads: int
    predictor_head_dim: int
    projection_dim: int
    intra_dim: int
    inter_dim: int

    @property
    def joint_depth(self) -> int:
        """Blocks that both modalities share: none."""
        return 0


PRESETS = {
    "equiav_tiny": Architecture(192, 3, 4, 64, 3, 64, 512, 128, 128),
    "equiav_small": Architecture(384, 6, 12, 128, 6, 64, 1024, 256, 256),
    "equiav_base": Architecture(768, 12, 12, 256, 8, 64, 2048, 512, 512),
}
PURPOSES = {
    "equiav_tiny": "for trying things on a laptop: width 192, 4 blocks, heads of 512",
    "equiav_small": "ViT-S: width 384, 12 blocks, heads of 1024",
    "equiav_base": "ViT-B, the published EquiAV: width 768, 12 blocks, heads of 2048",
}


@dataclass(frozen=True)
class EquiAvModelConfig(ModelConfig):
    """An EquiAV model by name, with its input's size; every width and depth can be overridden.

    Attributes:
        name: The preset: equiav_tiny, equiav_small or equiav_base.
        image_size: Height and width of a frame in pixels.
        audio_length: Frames T of the fbank (1024 for 10 s).
        num_mel_bins: Mel bins F of the fbank.
        patch_size: Height and width of a patch, for both modalities.
        embed_dim: Width of both towers; like all the following ``None`` is the preset's.
        num_heads: Attention heads of the towers.
        modality_depth: Blocks of each tower.
        transform_dim: Width of an encoded transformation.
        predictor_heads: Attention heads of the predictor.
        predictor_head_dim: Width of each of these.
        projection_dim: Hidden width of the projection heads.
        intra_dim: Width of the heads within a modality.
        inter_dim: Width of the heads across modalities.
        mlp_ratio: Hidden width of an MLP over the block's width.
        activation_checkpointing: Recompute each block in the backward pass instead of keeping its
            activations.
    """

    name: str = "equiav_base"
    patch_size: int = 16
    embed_dim: int | None = None
    num_heads: int | None = None
    modality_depth: int | None = None
    transform_dim: int | None = None
    predictor_heads: int | None = None
    predictor_head_dim: int | None = None
    projection_dim: int | None = None
    intra_dim: int | None = None
    inter_dim: int | None = None
    mlp_ratio: float = 4.0
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
        return f"{super().summary}, {self.architecture.modality_depth} blocks for each modality"

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

    def _check_sizes(self) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size is {self.patch_size}; it must be at least 1")
        for name in ("image_size", "audio_length", "num_mel_bins"):
            size = getattr(self, name)
            if size < 1 or size % self.patch_size:
                raise ValueError(
                    f"{name} is {size}; it must be a positive multiple of patch_size {self.patch_size}"
                )
        for name in ("mlp_ratio", "layer_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")

    def _check_architecture(self) -> None:
        arch = self.architecture
        for f in fields(Architecture):
            least = 0 if f.name == "modality_depth" else 1
            if getattr(arch, f.name) < least:
                raise ValueError(f"{f.name} is {getattr(arch, f.name)}; it must be at least {least}")
        if arch.embed_dim % arch.num_heads:
            raise ValueError(
                f"embed_dim {arch.embed_dim} must be a multiple of num_heads {arch.num_heads} "
                f"({self.name} with these overrides)"
            )
        if arch.embed_dim % 4:
            raise ValueError(f"embed_dim is {arch.embed_dim}; 2-D sin-cos positions need a multiple of 4")
