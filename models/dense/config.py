"""What a dense grounding model is: its towers, its heads, how similarities are made of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.config import ModelConfig, unknown_name
from models.dense.similarity import SimilarityConfig
from models.towers.conv import STRIDE
from models.towers.lora import LoraConfig

PURPOSES = {
    "dense_tiny": "for a laptop: small convolutional towers, randomly initialised",
    "dense_hubert_dinov2": "max-mean over HuBERT and DINOv2 from local folders, linear heads",
    "denseav": "DenseAV's heads and similarity over HuBERT and DINO(v2) from local folders",
}


@dataclass(frozen=True)
class TowerConfig:
    """A tower of one modality.

    Attributes:
        source: A folder: HuBERT or Wav2Vec2 for sound, DINOv2 for pictures, as transformers writes them; or the
            encoder of an Earsight run, checkpoint or export. None for a small convolutional tower, randomly
            initialised.
        frozen: Whether a tower from a source stays as it is.
        lora: Low-rank updates that are trained in place of a source's weights.
        width: D of a small tower.
        depth: Layers of a small tower behind those that halve its input.
    """

    source: str | None = None
    frozen: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    width: int = 128
    depth: int = 2

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"a tower's width is {self.width}; it must be a multiple of 8")
        if self.depth < 0:
            raise ValueError(f"a tower's depth is {self.depth}; it must not be negative")
        if self.frozen and self.source is None:
            raise ValueError(
                "a tower is frozen and has no source: it would stay random; give its source, or train it"
            )
        if self.lora.rank and (self.frozen or self.source is None):
            raise ValueError(
                "lora trains updates to the weights of a tower's source: give the source, and leave frozen out (the "
                "source's own weights stay as they are)"
            )


@dataclass(frozen=True)
class HeadConfig:
    """From a tower's tokens to the common width.

    Attributes:
        norm: A LayerNorm over channels first (epsilon 1e-4).
        time_convs: Of sound: so many convolutions over 3 moments each, which leave a third of them.
        attention: Of sound: a transformer block over the moments, with a learned class token beside them.
        pool: Of pictures: side of the squares of tokens that are averaged in training (1: none).
    """

    norm: bool = True
    time_convs: int = 0
    attention: bool = False
    pool: int = 1

    def __post_init__(self) -> None:
        if self.time_convs < 0:
            raise ValueError(f"a head's time_convs is {self.time_convs}; it must not be negative")
        if self.pool < 1:
            raise ValueError(f"a head's pool is {self.pool}; it must be at least 1")


@dataclass(frozen=True)
class ScaleConfig:
    """The learned factor between similarity and logit.

    Attributes:
        kind: ``calibration`` multiplies (DenseAV), ``temperature`` divides (max-mean).
        initial: Its value at the start.
        low: A temperature below this is penalised.
        high: A temperature above this likewise.
    """

    kind: Literal["calibration", "temperature"] = "calibration"
    initial: float = 1.0
    low: float = 2.3
    high: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in ("calibration", "temperature"):
            raise ValueError(f"scale.kind is {self.kind!r}; it must be calibration or temperature")
        if not 0 < self.low <= self.high or self.initial <= 0:
            raise ValueError(
                f"scale: initial {self.initial}, low {self.low} and high {self.high} must be above 0, low at most high"
            )


@dataclass(frozen=True)
class DenseModelConfig(ModelConfig):
    """A dense grounding model.

    Attributes:
        name: dense_tiny, dense_hubert_dinov2 or denseav.
        audio: The tower for sound.
        visual: The tower for pictures.
        audio_head: From its tokens to the common width.
        visual_head: Likewise for pictures.
        embed_dim: The common width, all heads together.
        num_heads: K.
        similarity: How a pair's volume becomes one number.
        scale: How similarities become logits.
        silence_db: Moments whose sound is this far below full scale (or further) are silence.
    """

    name: str = "dense_tiny"
    audio: TowerConfig = field(default_factory=TowerConfig)
    visual: TowerConfig = field(default_factory=TowerConfig)
    audio_head: HeadConfig = field(default_factory=HeadConfig)
    visual_head: HeadConfig = field(default_factory=HeadConfig)
    embed_dim: int = 128
    num_heads: int = 1
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    silence_db: float = -60.0

    def __post_init__(self) -> None:
        if self.name not in PURPOSES:
            raise unknown_name("model", self.name, PURPOSES)
        if self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"model.embed_dim {self.embed_dim} must be a multiple of model.num_heads {self.num_heads}"
            )
        if self.audio_head.attention and self.embed_dim % ATTENTION_HEADS:
            raise ValueError(
                f"model.embed_dim {self.embed_dim} must be a multiple of {ATTENTION_HEADS}, the attention heads of "
                "model.audio_head.attention"
            )
        if self.audio.source is None and self.num_mel_bins % STRIDE:
            raise ValueError(f"model.num_mel_bins {self.num_mel_bins} must be a multiple of {STRIDE}")
        if self.audio_head.pool != 1 or self.visual_head.time_convs or self.visual_head.attention:
            raise ValueError(
                "model.audio_head has no pool, model.visual_head neither time_convs nor attention: leave them out"
            )

    @property
    def encoder_width(self) -> int:
        """See `ModelConfig.encoder_width`: of the common space."""
        return self.embed_dim

    @property
    def encoder_heads(self) -> int:
        """See `ModelConfig.encoder_heads`: of the similarities."""
        return self.num_heads

    @property
    def is_self_contained(self) -> bool:
        """See `ModelConfig.is_self_contained`."""
        return self.audio.source is None and self.visual.source is None

    @property
    def audio_patch_length(self) -> int:
        """See `ModelConfig.audio_patch_length`."""
        return STRIDE


#: Attention heads of an audio head's transformer block (DenseAV's).
ATTENTION_HEADS = 6
