"""The names, sizes and layout of the published CAV-MAE (arXiv 2210.07839) in ours, and ours in these.

CAV-MAE Sync has the same and some of its own (`models.cav_mae_sync.published`). Published files hold fp32 tensors
under ``module.``. Each of their blocks carries the joint block's extra norms, which the published model never uses
outside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from models.cav_mae.config import CavMaeModelConfig

C = TypeVar("C", bound=CavMaeModelConfig)
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
        (r"encoder\.(audio|visual)\.global_token", r"cls_token_{0}"),
        (r"encoder\.registers", r"register_tokens"),
        (r"encoder\.contrast_blocks_audio\.(.+)", r"constrative_head_audio.{0}"),
        (r"encoder\.contrast_blocks_visual\.(.+)", r"constrative_head_visual.{0}"),
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
#: Endings of names of single tokens, (1, 1, D) as published.
_TOKENS = ("modality_embed", "modality_embed_audio", "modality_embed_visual", "mask_token", "global_token")
_LETTERS = {"audio": "a", "visual": "v"}
_PLAIN_BLOCKS = r"(blocks_[av]|decoder_blocks|constrative_head_\w+)\.\d+\.norm[12]"
NEVER_USED = re.compile(_PLAIN_BLOCKS + r"_[av]\.(weight|bias)")


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
    return infer_sizes(CavMaeModelConfig(), state, known)


def infer_sizes(
    preset: C, state: Mapping[str, Tensor], known: Mapping[str, Any], audio_key: str = "audio_length"
) -> C:
    """A preset with the sizes that published names and shapes describe; see `infer_config`.

    Args:
        preset: The ViT-B of the family.
        state: Published names, without ``module.``, and their tensors.
        known: Fields of the config that override what is inferred.
        audio_key: The field that the number of audio positions tells.
    """
    num_mel_bins = known.get("num_mel_bins", 128)
    embed_dim, _, patch_size, _ = _shape(state, "patch_embed_v.proj.weight")
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "image_size": round(_shape(state, "pos_embed_v")[1] ** 0.5) * patch_size,
        audio_key: _shape(state, "pos_embed_a")[1] * patch_size**2 // num_mel_bins,
        "embed_dim": embed_dim,
        "num_heads": _heads(embed_dim, 64, "num_heads", known),
        "modality_depth": block_depth(state, "blocks_a"),
        "joint_depth": block_depth(state, "blocks_u"),
        "mlp_ratio": _shape(state, "blocks_u.0.mlp.fc1.weight")[0] / embed_dim,
        "layer_norm_eps": PUBLISHED_EPS,
    }
    if "decoder_embed.weight" in state:
        width = _shape(state, "decoder_embed.weight")[0]
        heads = _heads(width, 32, "decoder_num_heads", known)
        depth = block_depth(state, "decoder_blocks")
        found |= {"decoder_embed_dim": width, "decoder_num_heads": heads, "decoder_depth": depth}
    # What the preset says anyway is left to it, so that the config of a published ViT-B reads like one.
    says = asdict(preset.architecture)
    return replace(
        preset, **{key: value for key, value in {**found, **known}.items() if says.get(key, ...) != value}
    )


def block_depth(state: Mapping[str, Tensor], blocks: str) -> int:
    """How many ``blocks.N`` there are."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state:
        raise ValueError(f"{name} is missing; this is no CAV-MAE checkpoint in the published names")
    return state[name].shape


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


def from_published(name: str, value: Tensor) -> Tensor:
    """A published tensor in the layout of ours of that name."""
    if name.endswith("patch_embed.weight"):
        return rearrange(value, "d c p q -> d (p q c)")
    if name.endswith(_TOKENS):
        return value.flatten()
    if name.endswith("registers"):
        return rearrange(value, "(m r) d -> m r d", m=2)
    return value


def _in_published_layout(name: str, value: Tensor, patch_size: int) -> Tensor:
    if name.endswith("patch_embed.weight"):
        return rearrange(value, "d (p q c) -> d c p q", p=patch_size, q=patch_size)
    if "pos_embed" in name:
        return value[None]
    if name.endswith(_TOKENS):
        return value[None, None]
    return value.flatten(0, 1) if name.endswith("registers") else value


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """The model's state in the published names (with ``module.``), shapes and completeness.

    The norms that the published model has and never uses are written as freshly initialised, so that its own
    strict loading takes the result.
    """
    config = cast(CavMaeModelConfig, model.config)
    state = {
        published_name(name): _in_published_layout(
            name, value.detach().float().cpu(), config.patch_size
        ).contiguous()
        for name, value in model.state_dict().items()
    }
    for name in [name for name in state if re.fullmatch(_PLAIN_BLOCKS + r"\.\w+", name)]:
        block, norm, kind = name.rsplit(".", 2)
        for letter in _LETTERS.values():
            fill = torch.ones_like if kind == "weight" else torch.zeros_like
            state[f"{block}.{norm}_{letter}.{kind}"] = fill(state[name])
    return {_PREFIX + name: value for name, value in state.items()}
