"""Models by name: the function's name is the model's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from models.cav_mae.config import ModelConfig, unknown_name
from models.cav_mae.mae import AudioVisualMAE

_MODELS: dict[str, Callable[..., AudioVisualMAE]] = {}


def register_model(function: Callable[..., AudioVisualMAE]) -> Callable[..., AudioVisualMAE]:
    """Makes a function that builds a model known under its own name."""
    _MODELS[function.__name__] = function
    return function


@register_model
def cav_mae_tiny(**overrides: Any) -> AudioVisualMAE:
    """For trying things on a laptop: width 192, 3 + 1 blocks, decoder 2 blocks of 128."""
    return AudioVisualMAE(ModelConfig("cav_mae_tiny", **overrides))


@register_model
def cav_mae_small(**overrides: Any) -> AudioVisualMAE:
    """ViT-S: width 384, 11 + 1 blocks, decoder 4 blocks of 256."""
    return AudioVisualMAE(ModelConfig("cav_mae_small", **overrides))


@register_model
def cav_mae_base(**overrides: Any) -> AudioVisualMAE:
    """ViT-B, the published CAV-MAE: width 768, 11 + 1 blocks, decoder 8 blocks of 512."""
    return AudioVisualMAE(ModelConfig("cav_mae_base", **overrides))


def list_models() -> list[str]:
    """The names `create_model` knows."""
    return sorted(_MODELS)


def create_model(name: str, **overrides: Any) -> AudioVisualMAE:
    """Builds a model with freshly drawn weights.

    Args:
        name: One of `list_models`.
        overrides: Fields of `ModelConfig` other than the preset's.

    Raises:
        ValueError: The name or an override is unknown (the nearest known ones are named), or the sizes do not
            fit.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    known = {f.name for f in fields(ModelConfig)} - {"name"}
    for key in overrides:
        if key not in known:
            raise unknown_name("model setting", key, known)
    return _MODELS[name](**overrides)


def build_model(config: ModelConfig) -> AudioVisualMAE:
    """Builds the model of a config, as it comes out of a YAML file."""
    return create_model(
        config.name, **{f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"}
    )
