"""A plain ViT's tensors (ImageNet MAE, timm) in the place of ours.

Both towers and the joint blocks come from the same blocks; the joint blocks' norms are copied for all three
streams; the audio patch embedding is the sum over colour channels, which gives a grey picture's embedding;
positions are interpolated to our grids by the caller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from models.cav_mae.config import PRESETS, Architecture, CavMaeModelConfig
from models.config import ModelConfig
from models.weights.errors import WeightsError

#: For families without joint blocks behind their towers.
_NO_JOINT = Architecture(0, 0, 0, 0, 0, 0, 0)
#: What becomes of a tensor on its way: its value in our layout, and how it was made where it was.
Pulled = tuple[str, Tensor, str | None]

_RULES = [
    (re.compile(pattern), source)
    for pattern, source in [
        (r"encoder\.(?:audio|visual)\.blocks\.(\d+)\.(.+)", "tower"),
        (r"encoder\.joint_blocks\.(\d+)\.(norm[12])\.(?:joint|audio|visual)\.(weight|bias)", "joint_norm"),
        (r"encoder\.joint_blocks\.(\d+)\.(.+)", "joint"),
        (r"encoder\.norm\.(?:joint|audio|visual)\.(weight|bias)", "norm"),
        (r"encoder\.(audio|visual)\.patch_embed\.(weight|bias)", "patch"),
        (r"encoder\.(?:audio|visual)\.pos_embed", "positions"),
        (r"decoder\.pos_embed_(?:audio|visual)", "decoder_positions"),
        (r"decoder\.blocks\.(.+)", "decoder_blocks.{0}"),
        (r"decoder\.(embed|norm)\.(weight|bias)", "decoder_{0}.{1}"),
        (r"decoder\.mask_token", "mask_token"),
        (r"decoder\.pred_visual\.(weight|bias)", "decoder_pred.{0}"),
    ]
]
_WHY_ANEW = [
    (
        re.compile(r"encoder\.(audio|visual)\.modality_embed|decoder\.modality_embed_\w+"),
        "a ViT has one modality",
    ),
    (re.compile(r"decoder\.pred_audio\..+"), "its decoder predicts pictures"),
]
_WHY_IGNORED = [
    (re.compile(r"cls_token|dist_token"), "our encoder pools over all tokens and has no class token"),
    (re.compile(r"head\..+|head_dist\..+"), "a head for classes of its own"),
]


def pull(name: str, state: Mapping[str, Tensor], config: ModelConfig) -> Pulled | None:
    """A ViT's tensor for one of our names: the name it has there, its value, and what was done to it.

    Positions come as a (rows, columns, D) grid; all else has our shape where the widths agree.

    Args:
        name: Ours, from ``encoder.`` or ``decoder.``.
        state: The ViT's tensors.
        config: Our model's.

    Returns:
        None where a ViT has no such tensor.
    """
    for pattern, rule in _RULES:
        match = pattern.fullmatch(name)
        if match:
            return _apply(rule, match.groups(), state, config)
    return None


def _apply(
    rule: str, groups: tuple[str, ...], state: Mapping[str, Tensor], config: ModelConfig
) -> Pulled | None:
    joint = getattr(config, "architecture", _NO_JOINT).modality_depth
    if rule == "positions" or rule == "decoder_positions":
        return _positions("pos_embed" if rule == "positions" else "decoder_pos_embed", state)
    if rule == "patch":
        return vit_patch(*groups, state=state)
    if rule == "tower":
        return vit_block(f"blocks.{groups[0]}.{groups[1]}", state, None)
    if rule == "joint_norm":
        source = f"blocks.{joint + int(groups[0])}.{groups[1]}.{groups[2]}"
        return vit_block(source, state, "copied for each stream")
    if rule == "joint":
        return vit_block(f"blocks.{joint + int(groups[0])}.{groups[1]}", state, None)
    if rule == "norm":
        # With average pooling timm and MAE call the last norm fc_norm.
        final = "norm" if f"norm.{groups[0]}" in state else "fc_norm"
        return vit_block(f"{final}.{groups[0]}", state, "copied for each stream")
    source = rule.format(*groups)
    value = state.get(source)
    if value is None:
        return None
    return source, value.flatten() if source == "mask_token" else value, None


def vit_block(source: str, state: Mapping[str, Tensor], how: str | None) -> Pulled | None:
    """A block's tensor; a layer scale behind it is folded in, which is the same function."""
    value = state.get(source)
    if value is None:
        return None
    scale = state.get(layer_scale(source) or "")
    if scale is None:
        return source, value, how
    return source, value * (scale[:, None] if value.ndim == 2 else scale), "layer scale folded in"


def layer_scale(source: str) -> str | None:
    """The name of the layer scale behind a linear layer of a ViT's block, if it may have one."""
    match = re.fullmatch(r"(blocks\.\d+)\.(attn\.proj|mlp\.fc2)\.(?:weight|bias)", source)
    if match is None:
        return None
    return f"{match.group(1)}.{'ls1' if match.group(2) == 'attn.proj' else 'ls2'}.gamma"


def vit_patch(modality: str, kind: str, *, state: Mapping[str, Tensor]) -> Pulled | None:
    """A patch embedding's weight, in rows of patches (for sound the sum over colours), or its bias."""
    source = f"patch_embed.proj.{kind}"
    value = state.get(source)
    if value is None or kind == "bias":
        return None if value is None else (source, value, None)
    if modality == "audio":
        value, how = value.sum(dim=1, keepdim=True), "summed over colour channels"
    else:
        how = "laid out as rows of patches"
    return source, value.permute(0, 2, 3, 1).flatten(1), how


def _positions(source: str, state: Mapping[str, Tensor]) -> Pulled | None:
    table = state.get(source)
    if table is None:
        return None
    length = table.shape[1]
    side = math.isqrt(length)
    if length - side * side not in (0, 1):  # one more for a class token
        raise WeightsError(f"{source} has {length} positions, which make no square of patches")
    return source, table[0, length - side * side :].reshape(side, side, -1), None


def why_anew(name: str) -> str | None:
    """Why a ViT can't have a tensor of ours; None if it should have it."""
    return next((why for pattern, why in _WHY_ANEW if pattern.fullmatch(name)), None)


def why_ignored(name: str) -> str | None:
    """Why a ViT's tensor has no place in our model; None if it should have one."""
    return next((why for pattern, why in _WHY_IGNORED if pattern.fullmatch(name)), None)


def infer_vit_config(state: Mapping[str, Tensor], **known: Any) -> CavMaeModelConfig:
    """The model that a ViT makes: all its blocks but the last in the towers, the last one joint.

    Args:
        state: The ViT's tensors.
        known: Fields of `CavMaeModelConfig` that shapes don't tell or that are to differ: ``num_heads`` where heads
            are not 64 wide as in every ViT-S, B and L, ``audio_length``, ``joint_depth``.

    Raises:
        WeightsError: The heads have to be given.
    """
    width, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if width % 64 and "num_heads" not in known:
        raise WeightsError(f"num_heads cannot be told from a width of {width}; give it")
    positions = _positions("pos_embed", state)
    joint_depth = known.get("joint_depth", 1)
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "embed_dim": width,
        "num_heads": known.get("num_heads", width // 64),
        "modality_depth": depth - joint_depth,
        "joint_depth": joint_depth,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.bias"]) / width,
    }
    if positions is not None:
        found["image_size"] = len(positions[1]) * patch_size
    if "decoder_embed.weight" in state:
        decoder = len(state["decoder_embed.weight"])
        if decoder % 32 and "decoder_num_heads" not in known:
            raise WeightsError(f"decoder_num_heads cannot be told from a width of {decoder}; give it")
        blocks = {name.split(".")[1] for name in state if name.startswith("decoder_blocks.")}
        found |= {
            "decoder_embed_dim": decoder,
            "decoder_depth": len(blocks),
            "decoder_num_heads": known.get("decoder_num_heads", decoder // 32),
        }
    base = PRESETS["cav_mae_base"]
    preset = {f.name: getattr(base, f.name) for f in fields(Architecture)}
    chosen = {name: value for name, value in (found | known).items() if preset.get(name, ...) != value}
    return CavMaeModelConfig("cav_mae_base", **chosen)
