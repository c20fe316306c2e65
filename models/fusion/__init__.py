"""Fusion of sound, frames and text: towers from anywhere, pooling, joining, several heads."""

from models.fusion.config import MODALITIES, FusionModelConfig
from models.fusion.joining import Fused, HeadShape, Opinion
from models.fusion.model import FusionInputs, FusionModel
from models.fusion.towers import build_towers, keep_towers, kept_towers, num_frames

__all__ = [
    "MODALITIES",
    "Fused",
    "FusionInputs",
    "FusionModel",
    "FusionModelConfig",
    "HeadShape",
    "Opinion",
    "build_towers",
    "keep_towers",
    "kept_towers",
    "num_frames",
]
