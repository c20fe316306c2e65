"""LoRA on a tower: its weights stay as they are, low-rank updates of some layers are trained (optional, peft)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of linear layers (Hu et al., arXiv 2106.09685): ``W + alpha / rank · B A``, B zero at the start.

    Attributes:
        rank: Of the updates; 0 for no LoRA.
        alpha: Scale of the updates, times 1 / rank.
        layers: The linear layers that get one, by the last part of their names, such as ``[q_proj, v_proj]``.
    """

    rank: int = 0
    alpha: float = 16.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError(f"lora: rank {self.rank} must be 0 or more, and alpha {self.alpha} more than 0")
        if bool(self.rank) != bool(self.layers):
            raise ValueError(
                f"lora: rank is {self.rank} and layers {list(self.layers)}; give both for LoRA, neither for none"
            )


def add_lora(tower: nn.Module, config: LoraConfig, setting: str) -> None:
    """Puts low-rank updates into a tower, in place; nothing else of it is trained any more.

    Args:
        tower: With its weights.
        config: Where, and of which rank.
        setting: Its key, for messages.

    Raises:
        ValueError: peft isn't installed, or the tower has no linear layer of some name.
    """
    if not config.rank:
        return
    peft = _import_peft(setting)
    names = [name.split(".") for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    there = sorted({parts[-1] for parts in names})
    for wanted in config.layers:
        if not any(parts[-len(wanted.split(".")) :] == wanted.split(".") for parts in names):
            raise ValueError(
                f"{setting}.layers: no linear layer's name ends in {wanted!r}; there are {', '.join(there)}"
            )
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.layers), lora_dropout=0.0
    )
    peft.inject_adapter_in_model(settings, tower)


def _import_peft(setting: str) -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError:
        raise ValueError(f"{setting} needs peft: pip install -e '.[lora]'") from None
