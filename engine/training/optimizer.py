"""The optimizer: its parameter groups, and the gradient norm and clipping that need no look at the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.objectives.base import LrGroup


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam's settings.

    Attributes:
        lr: Peak learning rate for the global batch.
        betas: Adam's two decay rates.
        eps: Adam's ε.
        weight_decay: On matrices only; norms, biases and embeddings have none.
        kind: ``adamw``, or ``adam`` with L2 regularisation in place of decoupled decay, as published CAV-MAE has it.
        clip_grad: Greatest norm of the whole gradient; None leaves it as it is.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.95, 0.999)
    eps: float = 1e-8
    weight_decay: float = 5e-7
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr is {self.lr}: it must be above 0")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"optimizer.clip_grad is {self.clip_grad}: it must be above 0, or null for none")


_KINDS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def build_optimizer(
    config: OptimizerConfig,
    module: nn.Module,
    no_weight_decay: set[str],
    lr_groups: Mapping[str, LrGroup] | None = None,
) -> torch.optim.Optimizer:
    """Adam over ``module`` in groups ``decay`` and ``no_decay``, with such a pair for each of ``lr_groups``.

    Args:
        config: The settings.
        module: Its parameters that require a gradient are optimised.
        no_weight_decay: Names of parameters without decay, beside all vectors and scalars (norms and biases).
        lr_groups: By name, the parameters whose rate is not the schedule's.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix, scale, from_epoch = (lr_groups or {}).get(name, LrGroup("", 1.0))
        decays = parameter.ndim > 1 and name not in no_weight_decay
        group = "_".join(word for word in (prefix, "decay" if decays else "no_decay") if word)
        weight_decay = config.weight_decay if decays else 0.0
        settings = {
            "params": [], "weight_decay": weight_decay, "name": group, "lr_scale": scale, "from_epoch": from_epoch,
        }  # fmt: skip
        groups.setdefault(group, settings)["params"].append(parameter)
    return _KINDS[config.kind](
        list(groups.values()), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def group_members(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters in each group; Adam's state goes by their order."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in optimizer.param_groups}


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What a config says of each group: rates, decay, β, ε."""
    return [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]


def apply_settings(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    """Gives the groups the settings they were built with in place of those that a checkpoint brought along."""
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        group |= wanted


def place_steps(optimizer: torch.optim.Optimizer) -> None:
    """Puts Adam's counts of steps where its parameters are, as fused Adam wants them.

    Those of checkpoints in which Adam was not fused are on the CPU, or integers.
    """
    for parameter, state in optimizer.state.items():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


def set_lr(optimizer: torch.optim.Optimizer, lr: Callable[[float], float]) -> dict[str, float]:
    """Sets every group's rate; returns them by group name.

    Args:
        optimizer: From `build_optimizer`.
        lr: The rate of a schedule that begins at an epoch; each group's is that times its own scale.
    """
    for group in optimizer.param_groups:
        # Groups of checkpoints from before there was such a key begin with the run.
        group["lr"] = lr(group.get("from_epoch", 0.0)) * group["lr_scale"]
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], max_norm: float | None, partitioned: bool) -> Tensor:
    """Norm of the whole gradient; scales the gradients to at most ``max_norm``, in place.

    Nothing here waits for the device, and the number of operations does not grow with that of the gradients. Where the
    norm is not finite, the gradients are not either: see `skip_unless_finite`.

    Args:
        gradients: This rank's gradients, already averaged over the ranks.
        max_norm: Greatest norm, or None.
        partitioned: Whether each rank holds another part of the gradient (ZeRO 1 and 2).

    Returns:
        () float32 norm before clipping, the same on every rank.
    """
    norms = torch._foreach_norm(gradients)
    total = torch.stack([norm.float() for norm in norms]).square().sum()
    if partitioned and dist.get_world_size() > 1:
        dist.all_reduce(total)
    norm = total.sqrt()
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def skip_unless_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Makes the next step change nothing if the gradient's norm is not finite; nobody waits for the device to know.

    The weights stay as they are then until the next log interval finds out.

    Args:
        optimizer: From `build_optimizer`: fused Adam looks at ``found_inf``, as of torch's gradient scaler.
        norm: () of `clip_gradients`.
    """
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
