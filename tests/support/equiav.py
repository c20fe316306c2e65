"""A small EquiAV."""

from __future__ import annotations

from typing import Any

import torch

from engine.objectives.equiav import EquiAvConfig, EquiAvObjective
from models import EquiAv, EquiAvModelConfig, FbankConfig

SIZES: dict[str, Any] = {
    "image_size": 32, "audio_length": 32, "num_mel_bins": 32, "embed_dim": 24, "num_heads": 2, "modality_depth": 1,
    "transform_dim": 8, "predictor_heads": 2, "predictor_head_dim": 8, "projection_dim": 16, "intra_dim": 12,
    "inter_dim": 12,
}  # fmt: skip


def small_equiav(config: EquiAvConfig | None = None, **overrides: Any) -> EquiAvObjective:
    torch.manual_seed(0)
    model = EquiAv(EquiAvModelConfig("equiav_tiny", **(SIZES | overrides)))
    return EquiAvObjective(model, FbankConfig(target_length=32, num_mel_bins=32), config or EquiAvConfig())
