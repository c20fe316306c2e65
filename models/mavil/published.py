"""The names and layout of the published MAViL in ours, and ours in these.

They are those of the authors' inference code (roger-tseng/av-superb, ``upstream_models/mavil``): two timm ViTs in one,
``blocks`` for sound and ``blocks_v`` for film, then ``blocks_av``; convolutions as patch embeddings; positions with a
row of zeros for the CLS token. A fine-tuned file has ``fc_norm_av`` and ``head_av`` beside them, or, where it was
fine-tuned without fusion blocks, a norm and a head for each tower. Decoders were not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from models.mavil.config import PRESETS, MavilModelConfig
from models.mavil.encoder import MavilEncoder

#: Beginnings of published names and of ours; the first that fits is taken.
_NAMES = [
    ("patch_embed.proj.", "encoder.audio.patch_embed."),
    ("patch_embed_v.proj.", "encoder.visual.patch_embed."),
    ("cls_token_v", "encoder.visual.cls_token"),
    ("cls_token", "encoder.audio.cls_token"),
    ("pos_embed_v", "encoder.visual.pos_embed"),
    ("pos_embed", "encoder.audio.pos_embed"),
    ("blocks_v.", "encoder.visual.blocks."),
    ("blocks_av.", "encoder.fusion.blocks."),
    ("blocks.", "encoder.audio.blocks."),
    ("fc_norm_av.", "norm."),
    ("head_av.", "head."),
]
_TOWER_HEADS = ("fc_norm_a.", "fc_norm_v.", "head_a.", "head_v.")
_BASE = "mavil_base"


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the published MAViL's names."""
    film = state.get("patch_embed_v.proj.weight")
    return film is not None and film.ndim == 5 and "patch_embed.proj.weight" in state


def infer_config(state: Mapping[str, Tensor], **known: Any) -> MavilModelConfig:
    """The model that published names and shapes describe.

    Shapes tell neither the number of heads (64 wide where ``num_heads`` is not given), nor the mel bins (128), nor the
    size of a frame (224), nor what pretraining removed.

    Args:
        state: Published names and their tensors.
        known: Fields of `MavilModelConfig` that override what is inferred.

    Raises:
        ValueError: A tensor that is needed is missing, or its shape makes no such model.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ValueError(f"{name} is missing; this is no MAViL checkpoint in the published names")
        return state[name].shape

    def depth(blocks: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})

    embed_dim, _, tubelet, patch_size, _ = shape("patch_embed_v.proj.weight")
    if "num_heads" not in known and embed_dim % 64:
        raise ValueError(f"num_heads cannot be told from a width of {embed_dim}; give num_heads=...")
    num_mel_bins, image_size = known.get("num_mel_bins", 128), known.get("image_size", 224)
    moments = (shape("pos_embed_v")[1] - 1) // (image_size // patch_size) ** 2
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "audio_length": (shape("pos_embed")[1] - 1) * patch_size**2 // num_mel_bins,
        "frames": moments * tubelet,
        "tubelet_frames": tubelet,
        "embed_dim": embed_dim,
        "num_heads": known.get("num_heads", embed_dim // 64),
        "depth": depth("blocks"),
        "fusion_depth": depth("blocks_av"),
        "mlp_ratio": shape("blocks.0.mlp.fc1.bias")[0] / embed_dim,
    }
    # What the preset says anyway is left to it, so that the config of a published ViT-B reads like one.
    preset = PRESETS[_BASE]
    chosen = {key: value for key, value in (found | known).items() if getattr(preset, key, None) != value}
    return MavilModelConfig(_BASE, **chosen)


def to_ours(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Published tensors in our names and layout.

    Returns:
        The tensors, and by name those that have no place in ours, with why.
    """
    found, left = {}, {}
    for name, value in state.items():
        ours = next(
            (ours + name.removeprefix(theirs) for theirs, ours in _NAMES if name.startswith(theirs)), None
        )
        if ours is not None:
            found[ours] = _our_layout(name, value, state)
        elif name.startswith(_TOWER_HEADS):
            left[name] = "a head of one tower alone; ours is for both"
        else:
            found[name] = value  # nobody's, for the account of every tensor to refuse
    return found, left


def _our_layout(name: str, value: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    if name == "patch_embed.proj.weight":
        return value.flatten(1)
    if name == "patch_embed_v.proj.weight":
        return rearrange(value, "d c k p q -> d (k p q c)")
    if name.startswith("pos_embed"):
        return value[0, 1:]
    if name.startswith("cls_token"):
        # The CLS token's own position is a constant of it; zeros in every published file.
        return value[0, 0] + state[name.replace("cls_token", "pos_embed")][0, 0]
    return value


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """A model's encoder, and its norm and head where it has them, in the published names and layout.

    Raises:
        ValueError: It has bottleneck fusion, which the published code has no names for.
    """
    config = model.config
    assert isinstance(config, MavilModelConfig)
    if config.bottleneck_tokens:
        raise ValueError(
            "model.bottleneck_tokens is above 0: the published MAViL code has plain fusion blocks only"
        )
    found, prefix = {}, "encoder." if isinstance(model, MavilEncoder) else ""
    for bare, value in model.state_dict().items():
        name = prefix + bare
        theirs = next(
            (theirs + name.removeprefix(ours) for theirs, ours in _NAMES if name.startswith(ours)), None
        )
        if theirs is not None:
            found[theirs] = _published_layout(theirs, value.detach().float().cpu(), config).contiguous()
    return found


def _published_layout(name: str, value: Tensor, config: MavilModelConfig) -> Tensor:
    size = config.patch_size
    if name == "patch_embed.proj.weight":
        return rearrange(value, "d (p q) -> d 1 p q", p=size)
    if name == "patch_embed_v.proj.weight":
        return rearrange(value, "d (k p q c) -> d c k p q", p=size, q=size, c=3)
    if name.startswith("pos_embed"):
        return torch.cat([torch.zeros_like(value[:1]), value])[None]
    if name.startswith("cls_token"):
        return value[None, None]
    return value
