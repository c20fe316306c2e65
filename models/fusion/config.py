"""What a fusion model is: a tower for each modality, how its tokens are pooled, how the modalities are joined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.config import ModelConfig

MODALITIES = ("audio", "visual", "text")
PoolingName = Literal["mean", "cls", "attention", "gem", "netvlad", "time_then_space", "space_then_time"]
FusionName = Literal["late", "intermediate", "early"]


@dataclass(frozen=True)
class TowerConfig:
    """A tower of one modality.

    Attributes:
        source: A local folder of transformers, a run or exported weights of Earsight, or torchvision's weights of
            r3d_18; None for a small tower, randomly initialised.
        frozen: Whether a tower from a source stays as it is.
        width: D of a small tower.
        depth: Layers of a small tower.
        pooling: How its tokens become one vector (``late`` and ``intermediate`` fusion).
        clusters: Of ``netvlad``.
    """

    source: str | None = None
    frozen: bool = False
    width: int = 128
    depth: int = 2
    pooling: PoolingName = "mean"
    clusters: int = 8

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"a tower's width is {self.width}; it must be a multiple of 8")
        if self.depth < 0 or self.clusters < 1:
            raise ValueError("a tower's depth must not be negative, its clusters at least 1")
        if self.clusters != TowerConfig.clusters and self.pooling != "netvlad":
            raise ValueError(f"a tower's clusters have no effect: its pooling is {self.pooling}, not netvlad")
        if self.frozen and self.source is None:
            raise ValueError(
                "a tower is frozen and has no source: it would stay random; give its source, or train it"
            )


@dataclass(frozen=True)
class VisualTowerConfig(TowerConfig):
    """A tower for frames.

    Attributes:
        frames: How many it is given of a clip, evenly spaced; 1 is a random one in training, the middle one in
            evaluation. None for as many as the model in ``source`` takes, 16 for r3d_18, and otherwise 1.
    """

    frames: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"model.visual.frames is {self.frames}; it must be at least 1")


@dataclass(frozen=True)
class TextTowerConfig(TowerConfig):
    """A tower for text.

    Attributes:
        max_length: Pieces of a text that are read (bytes, for a small tower); what is longer is cut.
    """

    max_length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2:
            raise ValueError(f"model.text.max_length is {self.max_length}; it must be at least 2")


@dataclass(frozen=True)
class LateConfig:
    """Late fusion: every modality has heads of its own, whose words are joined.

    Attributes:
        combine: ``mean`` of the probabilities, ``vote`` of the best classes, or ``stacked``: a linear layer over the
            probabilities.
        audio: What the word of the sound weighs in ``mean`` and ``vote``.
        visual: Likewise.
        text: Likewise.
    """

    combine: Literal["mean", "vote", "stacked"] = "mean"
    audio: float = 1.0
    visual: float = 1.0
    text: float = 1.0

    def __post_init__(self) -> None:
        for name in MODALITIES:
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"model.late.{name} is {getattr(self, name)}; it must be above 0 (model.modalities leaves one out)"
                )


@dataclass(frozen=True)
class IntermediateConfig:
    """Intermediate fusion: a vector of each modality, side by side, and a hidden layer over them.

    Attributes:
        width: Of each modality's vector.
        hidden: Of the layer over all.
        gated: Each number of the vectors times a gate that all modalities open (Arevalo et al. 2017).
    """

    width: int = 128
    hidden: int = 128
    gated: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.hidden) < 1:
            raise ValueError("model.intermediate.width and hidden must be at least 1")


@dataclass(frozen=True)
class EarlyConfig:
    """Early fusion: transformer blocks over the tokens of all modalities.

    Attributes:
        width: Of the tokens there.
        depth: Blocks.
        num_heads: Attention heads.
        bottleneck: Tokens in which the modalities meet alone (MBT, arXiv 2107.00135); 0 lets all see all.
    """

    width: int = 128
    depth: int = 2
    num_heads: int = 4
    bottleneck: int = 0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width < 1 or self.width % self.num_heads:
            raise ValueError(
                f"model.early.width {self.width} must be a multiple of model.early.num_heads {self.num_heads}"
            )
        if self.depth < 1 or self.bottleneck < 0:
            raise ValueError("model.early.depth must be at least 1, bottleneck not negative")


@dataclass(frozen=True)
class FusionModelConfig(ModelConfig):
    """A fusion model.

    Attributes:
        name: ``fusion``.
        modalities: Which of audio, visual and text it takes.
        audio: The tower for sound.
        visual: The tower for frames.
        text: The tower for text.
        fusion: ``late``, ``intermediate`` or ``early``; the section of that name says more.
        late: Late fusion.
        intermediate: Intermediate fusion.
        early: Early fusion.
    """

    name: str = "fusion"
    modalities: tuple[str, ...] = MODALITIES
    audio: TowerConfig = field(default_factory=TowerConfig)
    visual: VisualTowerConfig = field(default_factory=VisualTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    fusion: FusionName = "intermediate"
    late: LateConfig = field(default_factory=LateConfig)
    intermediate: IntermediateConfig = field(default_factory=IntermediateConfig)
    early: EarlyConfig = field(default_factory=EarlyConfig)

    def __post_init__(self) -> None:
        if self.name != "fusion":
            raise ValueError(
                f"model.name is {self.name!r}: runs with objective.kind fusion have the model fusion"
            )
        known = [name for name in MODALITIES if name in self.modalities]
        if not known or len(known) != len(self.modalities):
            raise ValueError(
                f"model.modalities is {list(self.modalities)}: it must name some of {', '.join(MODALITIES)}, each once"
            )
        for name in MODALITIES:
            tower = getattr(self, name)
            if name not in known and tower != type(tower)():
                raise ValueError(f"model.{name} has no effect: {name} is not among model.modalities")
            if self.fusion == "early" and (tower.pooling, tower.clusters) != ("mean", TowerConfig.clusters):
                raise ValueError(
                    f"model.{name}.pooling has no effect: early fusion takes the tokens themselves"
                )
        for name in ("late", "intermediate", "early"):
            settings = getattr(self, name)
            if name != self.fusion and settings != type(settings)():
                raise ValueError(f"model.{name} has no effect: model.fusion is {self.fusion}")

    @property
    def present(self) -> tuple[str, ...]:
        """The modalities in their usual order."""
        return tuple(name for name in MODALITIES if name in self.modalities)

    def tower(self, modality: str) -> TowerConfig:
        """The tower of a modality."""
        return getattr(self, modality)
