"""What a MAViL model is: sizes, masks and presets, checked before anything is built."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from models.config import ModelConfig, unknown_name
from models.layers.masking import MaskConfig, num_kept


@dataclass(frozen=True)
class MavilArchitecture:
    """Widths and depths of a model, all known.

    Attributes:
        embed_dim: Width D of towers and fusion blocks.
        num_heads: Attention heads of both.
        depth: Blocks of each tower.
        fusion_depth: Fusion blocks on top of both towers.
        decoder_embed_dim: Width of the decoders.
        decoder_depth: Blocks of each decoder.
        decoder_num_heads: Attention heads of the decoders.
    """

    embed_dim: int
    num_heads: int
    depth: int
    fusion_depth: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int


PRESETS = {
    "mavil_tiny": MavilArchitecture(192, 3, 4, 2, 128, 2, 4),
    "mavil_small": MavilArchitecture(384, 6, 12, 2, 256, 4, 8),
    "mavil_base": MavilArchitecture(768, 12, 12, 2, 512, 8, 16),
}
PURPOSES = {
    "mavil_tiny": "for trying things on a laptop: width 192, 4 + 2 blocks, decoders of 2 blocks of 128",
    "mavil_small": "ViT-S: width 384, 12 + 2 blocks, decoders of 4 blocks of 256",
    "mavil_base": "ViT-B, the published MAViL: width 768, 12 + 2 blocks, decoders of 8 blocks of 512",
}
#: Widths that 3-D sin-cos positions can be cut into: a quarter for time, half of the rest for each other axis.
_WIDTH_MULTIPLE = 16


@dataclass(frozen=True)
class MavilModelConfig(ModelConfig):
    """A MAViL model by name, with its input's size; every width and depth of the preset can be overridden.

    Attributes:
        name: The preset: mavil_tiny, mavil_small or mavil_base.
        image_size: Height and width of a frame in pixels.
        audio_length: Frames T of the fbank (1024 for 10 s).
        num_mel_bins: Mel bins F of the fbank.
        frames: Frames N of a clip (published: 8, at 2 a second).
        tubelet_frames: Frames in a visual token (published: 2). With ``frames`` 1 a token is a patch of the one frame,
            whatever this says.
        patch_size: Height and width of a patch, for both modalities.
        embed_dim: Width of the encoder; like all the following ``None`` is the preset's.
        num_heads: Attention heads of the encoder.
        depth: Blocks of each tower.
        fusion_depth: Fusion blocks (published: 2 in pretraining, 3 in the fine-tuned checkpoint).
        decoder_embed_dim: Width of the decoders.
        decoder_depth: Blocks of each decoder.
        decoder_num_heads: Attention heads of the decoders.
        bottleneck_tokens: 0 for plain fusion blocks over the tokens of both modalities. Above 0 the modalities meet
            in as many tokens only, in blocks of their own (MBT, Nagrani et al. 2021, which takes 4).
        mlp_ratio: Hidden width of an MLP over the block's width.
        mask: What pretraining removes (published: 80 % of both).
        norm_pix_loss: Whether raw reconstruction targets are normalised patch by patch.
        activation_checkpointing: Recompute each block in the backward pass instead of keeping its activations.
    """

    name: str = "mavil_base"
    frames: int = 8
    tubelet_frames: int = 2
    patch_size: int = 16
    embed_dim: int | None = None
    num_heads: int | None = None
    depth: int | None = None
    fusion_depth: int | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    bottleneck_tokens: int = 0
    mlp_ratio: float = 4.0
    mask: MaskConfig = field(default_factory=lambda: MaskConfig(0.8, 0.8))
    norm_pix_loss: bool = True
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.name not in PRESETS:
            raise unknown_name("model", self.name, PRESETS)
        self._check_sizes()
        self._check_architecture()

    @property
    def architecture(self) -> MavilArchitecture:
        """The preset with the overrides of this config."""
        chosen = {f.name: getattr(self, f.name) for f in fields(MavilArchitecture)}
        return replace(
            PRESETS[self.name], **{name: value for name, value in chosen.items() if value is not None}
        )

    @property
    def encoder_width(self) -> int:
        """D of the encoder."""
        return self.architecture.embed_dim

    @property
    def encoder_heads(self) -> int:
        """Attention heads of the encoder."""
        return self.architecture.num_heads

    @property
    def summary(self) -> str:
        """Its sizes in a line, for people."""
        arch = self.architecture
        fusion = f"{arch.fusion_depth} fusion blocks"
        if self.bottleneck_tokens:
            fusion += f" of each that meet in {self.bottleneck_tokens} tokens"
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return (
            f"width {arch.embed_dim}, {arch.num_heads} heads, {arch.depth} blocks for each modality and {fusion}; "
            f"{frames} a clip"
        )

    @property
    def num_frames(self) -> int:
        """N, the frames of a clip."""
        return self.frames

    @property
    def tubelet(self) -> int:
        """Frames in a visual token."""
        return 1 if self.frames == 1 else self.tubelet_frames

    @property
    def audio_patch_length(self) -> int:
        """Frames of the fbank in one column of audio patches."""
        return self.patch_size

    @property
    def audio_cells(self) -> tuple[int, int]:
        """Rows (time) and columns (frequency) of audio patches, in the order of the tokens."""
        return self.audio_length // self.patch_size, self.num_mel_bins // self.patch_size

    @property
    def visual_cells(self) -> tuple[int, int, int]:
        """Moments, rows and columns of tubelets, in the order of the tokens."""
        side = self.image_size // self.patch_size
        return self.frames // self.tubelet, side, side

    @property
    def audio_patch_dim(self) -> int:
        """Values in an audio patch."""
        return self.patch_size**2

    @property
    def visual_patch_dim(self) -> int:
        """Values in a tubelet."""
        return self.tubelet * self.patch_size**2 * 3

    @property
    def num_audio_tokens(self) -> int:
        """La, the audio patches of a clip, without its CLS token."""
        return self.audio_cells[0] * self.audio_cells[1]

    @property
    def num_visual_tokens(self) -> int:
        """Lv, the tubelets of a clip, without its CLS token."""
        moments, rows, columns = self.visual_cells
        return moments * rows * columns

    @property
    def num_kept_audio(self) -> int:
        """Ka, the audio tokens left by the mask."""
        return num_kept(self.num_audio_tokens, self.mask.audio_ratio)

    @property
    def num_kept_visual(self) -> int:
        """Kv, the visual tokens left by the mask."""
        return num_kept(self.num_visual_tokens, self.mask.visual_ratio)

    def _check_sizes(self) -> None:
        for name in ("patch_size", "frames", "tubelet_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("image_size", "audio_length", "num_mel_bins"):
            size = getattr(self, name)
            if size < 1 or size % self.patch_size:
                raise ValueError(
                    f"{name} is {size}; it must be a positive multiple of patch_size {self.patch_size}"
                )
        if self.frames % self.tubelet:
            raise ValueError(
                f"frames is {self.frames}; it must be 1 or a multiple of tubelet_frames {self.tubelet_frames}"
            )
        for name, kept in (("audio", self.num_kept_audio), ("visual", self.num_kept_visual)):
            if kept < 1:
                ratio = getattr(self.mask, f"{name}_ratio")
                raise ValueError(
                    f"mask.{name}_ratio {ratio} leaves no {name} token; lower it or enlarge the input"
                )
        if self.bottleneck_tokens < 0:
            raise ValueError(
                f"bottleneck_tokens is {self.bottleneck_tokens}; it must be 0 (plain fusion) or more"
            )
        for name in ("mlp_ratio", "layer_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")

    def _check_architecture(self) -> None:
        arch = self.architecture
        if self.bottleneck_tokens and not arch.fusion_depth:
            raise ValueError(
                f"bottleneck_tokens is {self.bottleneck_tokens} and fusion_depth 0; they are passed in fusion blocks"
            )
        for f in fields(MavilArchitecture):
            least = 0 if f.name in ("depth", "fusion_depth") else 1
            if getattr(arch, f.name) < least:
                raise ValueError(f"{f.name} is {getattr(arch, f.name)}; it must be at least {least}")
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(arch, width) % getattr(arch, heads):
                sizes = f"{width} {getattr(arch, width)} must be a multiple of {heads} {getattr(arch, heads)}"
                raise ValueError(f"{sizes} ({self.name} with these overrides)")
            if getattr(arch, width) % _WIDTH_MULTIPLE:
                raise ValueError(
                    f"{width} is {getattr(arch, width)}; 3-D sin-cos positions need a multiple of {_WIDTH_MULTIPLE}"
                )
