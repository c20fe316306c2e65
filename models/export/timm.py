"""The encoders as two ordinary ViTs that timm opens without Earsight.

Tower blocks and joint blocks with one modality's norms are a plain ViT: no class token, average pooling,
fixed positions with the modality embedding added. timm's LayerNorms have epsilon 1e-6 and none other can be
written in its config. A model with epsilon e becomes the same function by scaling: with the residual stream
times s, ``(s x - s μ) / √(s² σ² + 1e-6) = (x - μ) / √(σ² + 1e-6 / s²)``, so s = √(1e-6 / e), which embedding,
positions and the linear layers that write to the stream take on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from models.cav_mae.config import CavMaeModelConfig
from models.cav_mae.encoder import AudioVisualEncoder
from models.equiav.config import EquiAvModelConfig
from models.equiav.encoder import EquiAvEncoder
from models.frontend import IMAGENET_MEAN, IMAGENET_STD
from models.weights.description import Description
from models.weights.tensor_files import WEIGHTS_NAME, write_safetensors

TIMM_EPS = 1e-6
#: Encoders in which each modality alone is a plain ViT.
PlainTowers = AudioVisualEncoder | EquiAvEncoder
_ARCHITECTURE = "vit_base_patch16_224"
_WRITES_TO_STREAM = re.compile(r"(attn\.proj|mlp\.fc2)\.(weight|bias)$")


def timm_state(encoder: PlainTowers, modality: str) -> dict[str, Tensor]:
    """One modality's encoder in timm's names and shapes.

    Args:
        encoder: The encoder.
        modality: ``audio`` or ``visual``.
    """
    config, state = encoder.config, encoder.state_dict()
    size, scale = config.patch_size, (TIMM_EPS / config.layer_norm_eps) ** 0.5
    weight = state[f"{modality}.patch_embed.weight"]
    positions = state[f"{modality}.pos_embed"] + state[f"{modality}.modality_embed"]
    out = {
        "patch_embed.proj.weight": weight.reshape(len(weight), size, size, -1).permute(0, 3, 1, 2) * scale,
        "patch_embed.proj.bias": state[f"{modality}.patch_embed.bias"] * scale,
        "pos_embed": positions[None] * scale,
    }
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = state[f"norm.{modality}.{kind}"]
    depth = config.architecture.modality_depth
    for name, value in state.items():
        value = value * scale if _WRITES_TO_STREAM.search(name) else value
        if match := re.fullmatch(rf"{modality}\.blocks\.(.+)", name):
            out[f"blocks.{match.group(1)}"] = value
        elif match := re.fullmatch(rf"joint_blocks\.(\d+)\.(norm[12])\.{modality}\.(\w+)", name):
            out[f"blocks.{depth + int(match.group(1))}.{match.group(2)}.{match.group(3)}"] = value
        elif match := re.fullmatch(r"joint_blocks\.(\d+)\.((?:attn|mlp)\..+)", name):
            out[f"blocks.{depth + int(match.group(1))}.{match.group(2)}"] = value
    return {name: value.detach().float().cpu().contiguous() for name, value in out.items()}


def timm_config(description: Description, modality: str) -> dict[str, Any]:
    """The ``config.json`` with which timm builds one modality's encoder."""
    model, fbank = cast(CavMaeModelConfig | EquiAvModelConfig, description.model), description.fbank
    arch = model.architecture
    assert fbank is not None
    audio = modality == "audio"
    size = (model.num_mel_bins, model.audio_length) if audio else (model.image_size, model.image_size)
    channels = 1 if audio else 3
    model_args = {
        "img_size": size, "in_chans": channels, "patch_size": model.patch_size, "embed_dim": arch.embed_dim,
        "depth": arch.modality_depth + arch.joint_depth, "num_heads": arch.num_heads,
        "mlp_ratio": model.mlp_ratio, "class_token": False, "global_pool": "avg", "fc_norm": False,
    }  # fmt: skip
    pretrained_cfg = {
        "input_size": (channels, *size), "fixed_input_size": True, "interpolation": "bicubic",
        "crop_pct": 1.0, "crop_mode": "center", "mean": (fbank.mean,) if audio else IMAGENET_MEAN,
        "std": (fbank.std,) if audio else IMAGENET_STD, "num_classes": 0, "pool_size": None,
        "first_conv": "patch_embed.proj", "classifier": "head", "license": "",
    }  # fmt: skip
    return {
        "architecture": _ARCHITECTURE,
        "num_classes": 0,
        "num_features": arch.embed_dim,
        "global_pool": "avg",
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
        "earsight": {"modality": modality, **description.to_json()},
    }


@torch.no_grad()
def export_timm(encoder: PlainTowers, description: Description, folder: Path) -> dict[str, float]:
    """Writes ``FOLDER/audio`` and ``FOLDER/visual``, opens them with timm, and compares.

    Returns:
        For each modality the largest difference of the pooled features, relative to the largest feature.
    """
    return {
        modality: _export(encoder, description, modality, folder / modality)
        for modality in ("audio", "visual")
    }


def _export(encoder: PlainTowers, description: Description, modality: str, folder: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    state, config = timm_state(encoder, modality), timm_config(description, modality)
    write_safetensors(folder / WEIGHTS_NAME, state)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    inputs = torch.randn(
        2, *config["pretrained_cfg"]["input_size"], generator=torch.Generator().manual_seed(0)
    )
    if modality == "audio":
        expected = encoder.embed(inputs[:, 0].transpose(1, 2), None).audio
    else:
        expected = encoder.embed(None, inputs[:, None]).visual
    assert expected is not None
    return ((model(inputs) - expected).abs().max() / expected.abs().max()).item()
