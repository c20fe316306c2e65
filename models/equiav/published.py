"""The names and layout of the published EquiAV (JongSuk1/EquiAV) in ours, and ours in these.

Their blocks carry norms of a joint block that does not exist; their audio patch embedding sees three equal channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from models.equiav.config import PRESETS, Architecture, EquiAvModelConfig
from models.equiav.model import EquiAv
from models.weights.errors import WeightsError

PUBLISHED_EPS = 1e-5
_PREFIX = "module."
_LETTERS = {"audio": "a", "visual": "v"}
_NEVER_USED = re.compile(r"blocks_[av]\.\d+\.norm[12]_[av]\.(weight|bias)")

# Ours -> published, in order; the first pattern that matches the whole name is taken.
_NAMES = [
    (re.compile(pattern), published)
    for pattern, published in [
        (r"encoder\.(audio|visual)\.patch_embed\.(weight|bias)", r"patch_embed_{0}.proj.{1}"),
        (r"encoder\.(audio|visual)\.pos_embed", r"pos_embed_{0}"),
        (r"encoder\.(audio|visual)\.modality_embed", r"modality_{0}"),
        (r"encoder\.(audio|visual)\.blocks\.(.+)", r"blocks_{0}.{1}"),
        (r"encoder\.norm\.(audio|visual)\.(weight|bias)", r"norm_{0}.{1}"),
        (r"heads\.(audio|visual)\.norm_augmented\.(weight|bias)", r"norm_{0}_aug.{1}"),
        (r"heads\.(audio|visual)\.predictor\.encode\.(.+)", r"aug_encoder_{0}.{1}"),
        (r"heads\.(audio|visual)\.predictor\.norm_transform\.(weight|bias)", r"cross_attn_{0}.norm_aug.{1}"),
        (r"heads\.(audio|visual)\.predictor\.(.+)", r"cross_attn_{0}.{1}"),
        (r"heads\.(audio|visual)\.(intra|inter)\.(.+)", r"pred_{0}_{1}.{2}"),
    ]
]


def published_name(name: str) -> str:
    """The published name (without ``module.``) of one of our state's."""
    for pattern, published in _NAMES:
        match = pattern.fullmatch(name)
        if match:
            return published.format(*(_LETTERS.get(group, group) for group in match.groups()))
    raise AssertionError(f"no published name for {name}")


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names (without ``module.``) are those of the published pretraining model."""
    return "aug_encoder_a.0.weight" in state and "patch_embed_a.proj.weight" in state


def infer_config(state: Mapping[str, Tensor], **known: Any) -> EquiAvModelConfig:
    """The model that published names and shapes describe.

    Shapes do not tell the number of heads: where ``num_heads`` and ``predictor_heads`` are not given, heads are 64 wide
    as published. Nor do they tell the mel bins (128).

    Args:
        state: Published names, without ``module.``, and their tensors.
        known: Fields of `EquiAvModelConfig` that override what is inferred.

    Raises:
        ValueError: A tensor that is needed is missing, or its shape makes no such model.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ValueError(f"{name} is missing; this is no EquiAV checkpoint in the published names")
        return state[name].shape

    def heads(name: str, width: int) -> int:
        if name not in known and width % 64:
            raise ValueError(f"{name} cannot be told from a width of {width}; give {name}=...")
        return known.get(name, width // 64)

    embed_dim, _, patch_size, _ = shape("patch_embed_v.proj.weight")
    attention = shape("cross_attn_a.attn.to_q.weight")[0]
    predictor_heads = heads("predictor_heads", attention)
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "image_size": round(shape("pos_embed_v")[1] ** 0.5) * patch_size,
        "audio_length": shape("pos_embed_a")[1] * patch_size**2 // known.get("num_mel_bins", 128),
        "embed_dim": embed_dim,
        "num_heads": heads("num_heads", embed_dim),
        "modality_depth": len({name.split(".")[1] for name in state if name.startswith("blocks_a.")}),
        "transform_dim": shape("aug_encoder_a.0.weight")[0],
        "predictor_heads": predictor_heads,
        "predictor_head_dim": attention // predictor_heads,
        "projection_dim": shape("pred_a_intra.fc1.weight")[0],
        "intra_dim": shape("pred_a_intra.fc3.weight")[0],
        "inter_dim": shape("pred_a_inter.fc3.weight")[0],
        "mlp_ratio": shape("cross_attn_a.mlp.fc1.weight")[0] / embed_dim,
        "layer_norm_eps": PUBLISHED_EPS,
    }
    base = PRESETS["equiav_base"]
    preset = {f.name: getattr(base, f.name) for f in fields(Architecture)}
    chosen = {name: value for name, value in (found | known).items() if preset.get(name, ...) != value}
    return EquiAvModelConfig("equiav_base", **chosen)


def to_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Published tensors (without ``module.``) in our names and layout.

    Returns:
        The tensors, and by name those that have no place here, each with why.
    """
    ours = {theirs: name for name, theirs in _all_names(state)}
    left = {name: "the published model never uses it" for name in state if _NEVER_USED.fullmatch(name)}
    left |= {name: "no part of EquiAV" for name in state if name not in ours and name not in left}
    return {ours[name]: _to_our_layout(name, state[name]) for name in state if name in ours}, left


def _all_names(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Our names and the published ones of all tensors that a model with as many blocks as the state's has."""
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks_a.")), default=-1)
    tiny = EquiAvModelConfig(
        "equiav_tiny", image_size=16, audio_length=16, num_mel_bins=16, modality_depth=depth
    )
    with torch.device("meta"):
        model = EquiAv(tiny)
    return [(name, published_name(name)) for name in model.state_dict()]


def _to_our_layout(name: str, value: Tensor) -> Tensor:
    if name.endswith("patch_embed_a.proj.weight"):
        value = value.sum(dim=1, keepdim=True)
    if name.endswith(".proj.weight") and name.startswith("patch_embed"):
        return value.permute(0, 2, 3, 1).flatten(1)
    if name.startswith("modality_"):
        return value[0, 0]
    return value[0] if name.startswith("pos_embed") else value


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """The model's state in the published names (with ``module.``), shapes and completeness.

    The norms that the published model has and never uses are written as freshly initialised, so that its own strict
    loading takes the result; a third of the audio patch embedding goes to each of its three channels.

    Raises:
        WeightsError: It is a classifier, whose heads the published code has otherwise.
    """
    if not isinstance(model, EquiAv):
        raise WeightsError(
            "the published EquiAV classifies through projections that a classifier here has not: give the run or "
            "checkpoint of pretraining"
        )
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value, theirs = value.detach().float().cpu(), published_name(name)
        if name.endswith("patch_embed.weight"):
            size = model.config.patch_size
            value = value.reshape(len(value), size, size, -1).permute(0, 3, 1, 2)
            if name.startswith("encoder.audio."):
                value = value.expand(-1, 3, -1, -1) / 3
        elif "pos_embed" in name:
            value = value[None]
        elif "modality_embed" in name:
            value = value[None, None]
        state[theirs] = value.contiguous()
    for name in [name for name in state if re.fullmatch(r"blocks_[av]\.\d+\.norm[12]\.(weight|bias)", name)]:
        norm, kind = name.rsplit(".", 1)
        for letter in _LETTERS.values():
            fill = torch.ones_like if kind == "weight" else torch.zeros_like
            state[f"{norm}_{letter}.{kind}"] = fill(state[name])
    return {_PREFIX + name: value for name, value in state.items()}
