"""Files of weights as others write them, small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

VIT_ARGS: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}


def randomize(module: Module, seed: int = 0) -> Module:
    """Every parameter its own, so that no mistaken copy passes for the right one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def small_vit(**overrides: Any) -> nn.Module:
    """A ViT of timm that fits `support.small_models.SMALL`."""
    return randomize(timm.create_model("vit_small_patch16_224", num_classes=5, **(VIT_ARGS | overrides)))


def mae_state(decoder: bool = True) -> dict[str, Tensor]:
    """The tensors of an ImageNet MAE file: its encoder's are a ViT's without a head."""
    state = {name: value for name, value in small_vit().state_dict().items() if not name.startswith("head")}
    if decoder:
        generator = torch.Generator().manual_seed(2)
        shapes = {
            "mask_token": (1, 1, 16), "decoder_pos_embed": (1, 5, 16), "decoder_embed.weight": (16, 32),
            "decoder_embed.bias": (16,), "decoder_norm.weight": (16,), "decoder_norm.bias": (16,),
            "decoder_pred.weight": (768, 16), "decoder_pred.bias": (768,),
        }  # fmt: skip
        block = {name: value for name, value in state.items() if name.startswith("blocks.0.")}
        for name, value in block.items():
            shapes[f"decoder_{name}"] = tuple(size // 2 for size in value.shape)
        state |= {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state


class Hostile:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.trace}",)


class Calls:
    """Unpickled carelessly, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call
