"""Folders that DeepSpeed wrote for a program of others: half precision, parameter groups, a frozen layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.training import fit

from engine.parallel.world import World, distributed, import_deepspeed


def zero_folders(ours: list[dict], foreign: list[dict]) -> None:
    """Earsight's runs (`support.training.fit`), then folders of others, in one process group."""
    with distributed() as world:
        for run in ours:
            fit(world, **run)
        for settings in foreign:
            _write(world, **settings)


def _write(world: World, folder: str, stage: int) -> None:
    """Trains in bfloat16 and saves; ``FOLDER/expected.safetensors`` has the engine's own float32 weights."""
    from deepspeed.utils import safe_get_full_fp32_param

    torch.manual_seed(stage)
    module = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3))
    module[1].bias.requires_grad_(False)
    module.register_buffer("grid", torch.arange(3))
    decay, rest = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decay if name == "0.weight" else rest).append(parameter)
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": rest, "weight_decay": 0.0}], lr=1e-2)
    settings: dict[str, Any] = {
        "train_batch_size": 2 * world.size,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
    }
    engine, _, _, _ = import_deepspeed().initialize(model=module, optimizer=optimizer, config=settings)
    for step in range(2):
        given = torch.randn(2, 7, generator=torch.Generator().manual_seed(2 * step + world.rank))
        engine.backward(engine(given.bfloat16()).float().square().mean())
        engine.step()
    engine.save_checkpoint(folder)
    if stage:
        weights = {name: safe_get_full_fp32_param(p) for name, p in module.named_parameters()}
        found = {name: value.clone() for name, value in weights.items() if value is not None}
        if world.is_main:
            save_file(found, Path(folder) / "expected.safetensors")
    world.barrier()
