"""The names, sizes and layout of the published CAV-MAE (arXiv 2210.07839) in ours, and ours in these.

Published files hold fp32 tensors under ``module.``. Each of their blocks carries the joint block's extra norms,
which the published model never uses outside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from models.cav_mae.config import PRESETS, Architecture, CavMaeModelConfig
from models.cav_mae.mae import AudioVisualMAE
from models.classifier import AudioVisualClassifier

PUBLISHED_EPS = 1e-5
_PUBLISHED_DEPTH = 12
_PREFIX = "module."

# Ours -> published, in order; the first pattern that matches the whole name is taken.
_NAMES = [
    (re.compile(pattern), published)
    for pattern, published in [
        (r"encoder\.(audio|visual)\.patch_embed\.(weight|bias)", r"patch_embed_{0}.proj.{1}"),
        (r"encoder\.(audio|visual)\.pos_embed", r"pos_embed_{0}"),
        (r"encoder\.(audio|visual)\.modality_embed", r"modality_{0}"),
        (r"encoder\.(audio|visual)\.blocks\.(.+)", r"blocks_{0}.{1}"),
        (r"encoder\.joint_blocks\.(\d+\.norm[12])\.joint\.(weight|bias)", r"blocks_u.{0}.{1}"),
        (r"encoder\.joint_blocks\.(\d+\.norm[12])\.(audio|visual)\.(weight|bias)", r"blocks_u.{0}_{1}.{2}"),
        (r"encoder\.joint_blocks\.(.+)", r"blocks_u.{0}"),
        (r"encoder\.norm\.joint\.(weight|bias)", r"norm.{0}"),
        (r"encoder\.norm\.(audio|visual)\.(weight|bias)", r"norm_{0}.{1}"),
        (r"decoder\.(embed|norm)\.(weight|bias)", r"decoder_{0}.{1}"),
        (r"decoder\.mask_token", r"mask_token"),
        (r"decoder\.modality_embed_(audio|visual)", r"decoder_modality_{0}"),
        (r"decoder\.pos_embed_(audio|visual)", r"decoder_pos_embed_{0}"),
        (r"decoder\.blocks\.(.+)", r"decoder_blocks.{0}"),
        (r"decoder\.pred_(audio|visual)\.(weight|bias)", r"decoder_pred_{0}.{1}"),
        (r"norm\.(weight|bias)", r"mlp_head.0.{0}"),
        (r"head\.(weight|bias)", r"mlp_head.1.{0}"),
    ]
]
_LETTERS = {"audio": "a", "visual": "v"}
NEVER_USED = re.compile(r"(blocks_a|blocks_v|decoder_blocks)\.\d+\.norm[12]_[av]\.(weight|bias)")


def published_name(name: str) -> str:
    """The published name (without ``module.``) of one of our state's."""
    for pattern, published in _NAMES:
        match = pattern.fullmatch(name)
        if match:
            return published.format(*(_LETTERS.get(group, group) for group in match.groups()))
    raise AssertionError(f"no published name for {name}")


def infer_config(state: Mapping[str, Tensor], **known: Any) -> CavMaeModelConfig:
    """The model that published names and shapes describe.

    Shapes do not tell the number of heads: where ``num_heads`` and ``decoder_num_heads`` are not given, heads
    are 64 and 32 wide as in every published checkpoint. Nor do they tell the mel bins (128) or the share
    masked.

    Args:
        state: Published names, without ``module.``, and their tensors.
        known: Fields of `CavMaeModelConfig` that override what is inferred.

    Raises:
        ValueError: A tensor that is needed is missing, or its shape makes no such model.
    """
    base = PRESETS["cav_mae_base"]

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ValueError(f"{name} is missing; this is no CAV-MAE checkpoint in the published names")
        return state[name].shape

    def depth(blocks: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})

    embed_dim, _, patch_size, _ = shape("patch_embed_v.proj.weight")
    num_mel_bins = known.get("num_mel_bins", 128)
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "image_size": round(shape("pos_embed_v")[1] ** 0.5) * patch_size,
        "audio_length": shape("pos_embed_a")[1] * patch_size**2 // num_mel_bins,
        "embed_dim": embed_dim,
        "num_heads": _heads(embed_dim, 64, "num_heads", known),
        "modality_depth": depth("blocks_a"),
        "joint_depth": depth("blocks_u"),
        "mlp_ratio": shape("blocks_u.0.mlp.fc1.weight")[0] / embed_dim,
        "layer_norm_eps": PUBLISHED_EPS,
    }
    if "decoder_embed.weight" in state:
        width = shape("decoder_embed.weight")[0]
        heads = _heads(width, 32, "decoder_num_heads", known)
        found |= {
            "decoder_embed_dim": width,
            "decoder_num_heads": heads,
            "decoder_depth": depth("decoder_blocks"),
        }
    # What the preset says anyway is left to it, so that the config of a published ViT-B reads like one.
    preset = {f.name: getattr(base, f.name) for f in fields(Architecture)}
    chosen = {name: value for name, value in (found | known).items() if preset.get(name, ...) != value}
    return CavMaeModelConfig("cav_mae_base", **chosen)


def _heads(width: int, head_width: int, name: str, known: Mapping[str, Any]) -> int:
    if name in known:
        return known[name]
    if width % head_width:
        raise ValueError(f"{name} cannot be told from a width of {width}; give {name}=...")
    return width // head_width


def published_limits(config: CavMaeModelConfig) -> list[str]:
    """What the published code, whose constructor fixes some sizes, can't do with a model; empty for its own."""
    arch, limits = config.architecture, []
    if arch.modality_depth + arch.joint_depth != _PUBLISHED_DEPTH:
        limits.append(
            f"the published code builds {_PUBLISHED_DEPTH} blocks, {_PUBLISHED_DEPTH} - modality_specific_depth of "
            f"them joint, and can't load these {arch.modality_depth} + {arch.joint_depth} as it is"
        )
    if arch.joint_depth > 1:
        limits.append(
            "in pretraining the published code keeps only the last of several joint blocks for the streams of one "
            "modality: these will differ there"
        )
    if (config.num_mel_bins, config.patch_size) != (128, 16):
        limits.append(
            f"the published code has 128 mel bins in patches of 16, and can't load these {config.num_mel_bins} in "
            f"patches of {config.patch_size} as it is"
        )
    return limits


def to_published(model: AudioVisualMAE | AudioVisualClassifier) -> dict[str, Tensor]:
    """The model's state in the published names (with ``module.``), shapes and completeness.

    The norms that the published model has and never uses are written as freshly initialised, so that its own
    strict loading takes the result.
    """
    config, state = cast(CavMaeModelConfig, model.config), {}
    for name, value in model.state_dict().items():
        value = value.detach().float().cpu()
        if name.endswith("patch_embed.weight"):
            size = config.patch_size
            value = value.reshape(len(value), size, size, -1).permute(0, 3, 1, 2)
        elif "pos_embed" in name:
            value = value[None]
        elif name.endswith("mask_token") or "modality_embed" in name:
            value = value[None, None]
        state[published_name(name)] = value.contiguous()
    for name in [
        name for name in state if re.fullmatch(r"(blocks_[av]|decoder_blocks)\.\d+\.norm[12]\.\w+", name)
    ]:
        block, norm, kind = name.rsplit(".", 2)
        for letter in _LETTERS.values():
            fill = torch.ones_like if kind == "weight" else torch.zeros_like
            state[f"{block}.{norm}_{letter}.{kind}"] = fill(state[name])
    return {_PREFIX + name: value for name, value in state.items()}
