"""One rank of a world of many, whose other ranks are not there: torch's fake process group sends nothing."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from support.training import make_batch, with_lone_group
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from engine.checkpoints.partitions import load_adam, read_adam, stretches
from engine.objectives.base import Objective
from engine.parallel.deepspeed_engine import (
    ParallelConfig,
    build_engine,
    copy_state,
    inner_optimizer,
    partition_gradients,
)
from engine.parallel.world import World, import_deepspeed
from engine.training.optimizer import OptimizerConfig, build_optimizer, clip_gradients


def one_step(size: int, ranks: list[int], zero_stage: Any, folder: str) -> dict[str, Any]:
    """What a rank of ``size`` has of each group after a step; every process plays one of ``ranks``.

    Its ``stretches``; all numbers of the group, of which its own are stepped, and as plain Adam would have
    ``expected_numbers``; its own ``moments``, those of all ranks ``expected_moments``, and ``read_moments``, its own as
    another engine has them from the files of the first.
    """
    rank = ranks[int(os.environ["RANK"])]
    with patch.dict(os.environ, RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(size)):
        return _one_step(World(rank, size, torch.device("cpu")), zero_stage, Path(folder, str(rank)))


def _one_step(world: World, zero_stage: Any, folder: Path) -> dict[str, Any]:
    rank, size = world.rank, world.size
    deepspeed = import_deepspeed()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    deepspeed.init_distributed("fake", auto_mpi_discovery=False, verbose=False)
    parallel = ParallelConfig(global_batch_size=2 * size, zero_stage=zero_stage, precision="fp32")

    def make_engine() -> Any:
        # The other ranks' rows can't be had, so nothing is compared with them.
        objective = with_lone_group(contrast_weight=0.0)
        return build_engine(objective, _adam(objective), parallel, world)

    engine = make_engine()
    plain = _plain_step(engine, size)
    own = stretches(engine.optimizer)
    groups = engine.optimizer.bit16_groups
    found: dict[str, Any] = {"stretches": [tuple(one) for one in own]}

    values = engine(make_batch([0, 1]))
    engine.backward(values["loss"])
    clip_gradients(partition_gradients(engine, zero_stage), None, partitioned=True)
    engine.step()

    state = inner_optimizer(engine).state
    parts = engine.optimizer.single_partition_of_fp32_groups
    found["numbers"] = [_flat(group) for group in groups]
    found["expected_numbers"] = [_flat([plain[p][0] for p in group]) for group in groups]
    found["moments"] = [state[part]["exp_avg"] for part in parts]
    found["expected_moments"] = [_flat([plain[p][1] for p in group]) for group in groups]

    for path, content in copy_state(engine, folder, "deepspeed").items():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    again = make_engine()
    load_adam(again.optimizer, read_adam(folder / "deepspeed", size, own, rank, size))
    state = inner_optimizer(again).state
    found["read_moments"] = [state[p]["exp_avg"] for p in again.optimizer.single_partition_of_fp32_groups]
    return found


def _plain_step(engine: Any, size: int) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
    """Each parameter and its first moment after a step of plain Adam.

    Its gradient is the mean over the ranks, of which only this one has any.
    """
    objective = deepcopy(engine.module)
    objective(make_batch([0, 1]))["loss"].backward()
    optimizer = _adam(objective)
    for parameter in objective.parameters():
        if parameter.grad is not None:
            parameter.grad /= size
    optimizer.step()
    return {
        original: (
            stepped.detach(),
            optimizer.state.get(stepped, {}).get("exp_avg", torch.zeros_like(stepped)),
        )
        for original, stepped in zip(engine.module.parameters(), objective.parameters(), strict=True)
        if original.requires_grad
    }


def _adam(objective: Objective[Any]) -> torch.optim.Optimizer:
    return build_optimizer(
        OptimizerConfig(lr=1e-3), objective.model, objective.no_weight_decay(), objective.lr_groups()
    )


def _flat(tensors: list[Any]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
