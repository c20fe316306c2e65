"""The encoders as ordinary ViTs that timm opens without Earsight.

CAV-MAE's tower blocks and joint blocks with one modality's norms are a plain ViT: no class token, average pooling,
fixed positions with the modality embedding added. So is a tower of MAViL, with its class token and without a last norm,
unless it reads films: timm has no ViT over tubelets. timm's LayerNorms have epsilon 1e-6 and none other can be
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

from atomic import write_atomically
from models.cav_mae.config import CavMaeModelConfig
from models.cav_mae.encoder import AudioVisualEncoder
from models.equiav.config import EquiAvModelConfig
from models.equiav.encoder import EquiAvEncoder
from models.frontend import IMAGENET_MEAN, IMAGENET_STD
from models.mavil.config import MavilArchitecture, MavilModelConfig
from models.mavil.encoder import MavilEncoder
from models.weights.description import Description
from models.weights.errors import WeightsError
from models.weights.tensor_files import WEIGHTS_NAME, write_safetensors

TIMM_EPS = 1e-6
#: Encoders in which each modality alone is a plain ViT.
PlainTowers = AudioVisualEncoder | EquiAvEncoder | MavilEncoder
_ARCHITECTURE = "vit_base_patch16_224"
_WRITES_TO_STREAM = re.compile(r"(attn\.proj|mlp\.fc2)\.(weight|bias)$")


def plain_towers(encoder: PlainTowers) -> tuple[str, ...]:
    """The modalities whose encoder is a plain ViT over one picture or spectrogram."""
    films = isinstance(encoder, MavilEncoder) and encoder.config.tubelet > 1
    return ("audio",) if films else ("audio", "visual")


def timm_state(encoder: PlainTowers, modality: str) -> dict[str, Tensor]:
    """One modality's encoder in timm's names and shapes.

    Args:
        encoder: The encoder.
        modality: ``audio`` or ``visual``.

    Raises:
        WeightsError: No ViT of timm is the same function.
    """
    mavil = isinstance(encoder, MavilEncoder)
    out = _mavil_state(encoder, modality) if mavil else _normed_state(encoder, modality)
    return {name: value.detach().float().cpu().contiguous() for name, value in out.items()}


def _mavil_state(encoder: MavilEncoder, modality: str) -> dict[str, Tensor]:
    config, state = encoder.config, encoder.state_dict()
    if config.layer_norm_eps != TIMM_EPS:
        raise WeightsError(
            f"the model's layer_norm_eps is {config.layer_norm_eps:g} and timm's {TIMM_EPS:g}; without a last norm no "
            "ViT of timm is the same function: use another format"
        )
    size, weight = config.patch_size, state[f"{modality}.patch_embed.weight"]
    patches = weight.reshape(len(weight), size, size, -1).permute(0, 3, 1, 2)
    positions = state[f"{modality}.pos_embed"]
    if modality == "audio":  # MAViL's spectrogram has time first, timm's pictures have it along their width
        patches = patches.mT
        positions = positions.unflatten(0, config.audio_cells).transpose(0, 1).flatten(0, 1)
    blocks = {name.split(".", 1)[1]: v for name, v in state.items() if name.startswith(f"{modality}.blocks.")}
    return {
        "patch_embed.proj.weight": patches,
        "patch_embed.proj.bias": state[f"{modality}.patch_embed.bias"],
        "cls_token": state[f"{modality}.cls_token"][None, None],
        "pos_embed": positions[None],
        **blocks,
    }


def _normed_state(encoder: AudioVisualEncoder | EquiAvEncoder, modality: str) -> dict[str, Tensor]:
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
    return out


def timm_config(description: Description, modality: str) -> dict[str, Any]:
    """The ``config.json`` with which timm builds one modality's encoder."""
    model = cast(CavMaeModelConfig | EquiAvModelConfig | MavilModelConfig, description.model)
    arch, fbank = model.architecture, description.fbank
    assert fbank is not None
    if isinstance(arch, MavilArchitecture):
        depth, own = arch.depth, {"class_token": True, "no_embed_class": True, "final_norm": False}
    else:
        depth, own = arch.modality_depth + arch.joint_depth, {"class_token": False}
    audio = modality == "audio"
    size = (model.num_mel_bins, model.audio_length) if audio else (model.image_size, model.image_size)
    channels = 1 if audio else 3
    model_args = {
        "img_size": size, "in_chans": channels, "patch_size": model.patch_size, "embed_dim": arch.embed_dim,
        "depth": depth, "num_heads": arch.num_heads, "mlp_ratio": model.mlp_ratio, "global_pool": "avg",
        "fc_norm": False, **own,
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
    """Writes ``FOLDER/audio`` and ``FOLDER/visual``, opens them with timm, and compares; see `plain_towers`.

    Returns:
        For each modality written the largest difference of the pooled features, relative to the largest feature.
    """
    return {
        modality: _export(encoder, description, modality, folder / modality)
        for modality in plain_towers(encoder)
    }


def _export(encoder: PlainTowers, description: Description, modality: str, folder: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    state, config = timm_state(encoder, modality), timm_config(description, modality)
    write_safetensors(folder / WEIGHTS_NAME, state)
    write_atomically(folder / "config.json", json.dumps(config, indent=1) + "\n")
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
