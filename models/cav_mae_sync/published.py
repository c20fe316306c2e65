"""Published CAV-MAE Sync and TG-DP files: CAV-MAE's names, and those of global tokens, registers, contrast blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.cav_mae_sync.config import CavMaeSyncModelConfig
from models.cav_mae_sync.model import CavMaeSync
from models.layers.masking import MaskConfig
from models.weights.published import NEVER_USED, block_depth, from_published, infer_sizes, published_name

_OURS_ALONE = re.compile(r"cls_token_[av]|register_tokens|constrative_head_\w+\..+")
_HEAD = {"mlp_head.0.weight": "norm.weight", "mlp_head.0.bias": "norm.bias"}
_HEAD |= {"mlp_head.1.weight": "head.weight", "mlp_head.1.bias": "head.bias"}
_CONTRAST_DEPTH = 2
_WHY_NEVER = "the published model has it and never uses it"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the published CAV-MAE's names and some that only CAV-MAE Sync has."""
    return "patch_embed_a.proj.weight" in state and any(_OURS_ALONE.fullmatch(name) for name in state)


def infer_config(state: Mapping[str, Tensor], **known: Any) -> CavMaeSyncModelConfig:
    """The model that published names and shapes describe; see `models.weights.published.infer_config`.

    Args:
        state: Published names, without ``module.``, and their tensors.
        known: Fields of `CavMaeSyncModelConfig` that override what is inferred.

    Raises:
        ValueError: A tensor that is needed is missing, or its shape makes no such model.
    """
    for name in ("cls_token_a", "cls_token_v"):
        if name not in state:
            raise ValueError(
                f"{name} is missing: this CAV-MAE Sync was made without global tokens, which are what ours contrasts"
            )
    registers = len(state["register_tokens"]) // 2 if "register_tokens" in state else 0
    depth = block_depth(state, "constrative_head_audio")
    found = {"num_registers": registers, "contrast_depth": depth}
    return infer_sizes(CavMaeSyncModelConfig(), state, found | known, audio_key="segment_length")


def to_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in our names and layout, and those that the published model never uses.

    Raises:
        ValueError: As of `infer_config`.
    """
    # Names depend on depths alone, not on what shapes don't tell.
    side = state["patch_embed_a.proj.weight"].shape[2]
    sizes = dict.fromkeys(("image_size", "audio_length", "segment_length", "num_mel_bins"), side)
    config = infer_config(state, **sizes, num_heads=1, decoder_num_heads=1, mask=MaskConfig(0, 0))
    with torch.device("meta"):
        model = CavMaeSync(config)
    names = {published_name(name): name for name in model.state_dict()} | _HEAD
    ours = {
        names.get(name, name): from_published(names.get(name, name), value) for name, value in state.items()
    }
    left = {name: _WHY_NEVER for name in ours if NEVER_USED.fullmatch(name)}
    return {name: value for name, value in ours.items() if name not in left}, left


def limits(config: CavMaeSyncModelConfig) -> list[str]:
    """What the published code can't do with a model, beside what the published CAV-MAE can't; empty for its own."""
    found = []
    if config.contrast_depth not in (0, _CONTRAST_DEPTH):
        found.append(
            f"the published code has no blocks or {_CONTRAST_DEPTH} before the contrast, and can't load these "
            f"{config.contrast_depth} as it is"
        )
    if (config.image_size, config.patch_size) != (224, 16):
        found.append(
            f"the published code's training pass draws pictures of 224 pixels only, and stops with these "
            f"{config.image_size}; its features are the same"
        )
    return found
