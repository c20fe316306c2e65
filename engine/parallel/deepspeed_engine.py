"""DeepSpeed as the data-parallel engine: its configuration, and the gradients it holds before a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.parallel.host_copies import copy_to_host
from engine.parallel.reduction import OverlappedMean
from engine.parallel.world import World, import_deepspeed

#: Numbers that ZeRO reduces at a time, through a buffer of 0.2 GB. DeepSpeed's own choice takes 2 GB of every GPU, more
#: than it saves for a ViT-B.
BUCKET = 50_000_000


@dataclass(frozen=True)
class ParallelConfig:
    """How a step is computed.

    Attributes:
        global_batch_size: Clips in an optimizer step, over all ranks and accumulation steps.
        accumulation_steps: Micro-batches, one after the other, that make up a step.
        zero_stage: 0 keeps everything on every rank, 1 partitions the optimizer's state, 2 the gradients as well.
        overlap_comm: Whether ZeRO 1 and 2 exchange gradients during the backward pass, as it is done without ZeRO
            anyway, through a second buffer of 0.2 GB. DeepSpeed then makes the host wait for the device after backward
            passes.
        precision: ``bf16`` computes under autocast with float32 weights; ``auto`` is bf16 on a GPU that has it and
            fp32 elsewhere.
        deterministic: Whether GPUs add in an order that is always the same, without which a resumed run is equal to
            rounding only. Costs time, in attention's backward pass above all.
        compile: Whether the transformer blocks go through torch.compile in training; evaluations and pictures do not.
    """

    global_batch_size: int = 256
    accumulation_steps: int = 1
    zero_stage: Literal[0, 1, 2] = 0
    overlap_comm: bool = False
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    deterministic: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.parallel.{name} is {getattr(self, name)}: it must be at least 1")
        if self.overlap_comm and not self.zero_stage:
            raise ValueError(
                "train.parallel.overlap_comm is of zero_stage 1 and 2: without ZeRO it is always so"
            )

    def micro_batch_size(self, world_size: int) -> int:
        """Clips that one rank computes at a time.

        Raises:
            ValueError: If the global batch cannot be divided so.
        """
        parts = self.accumulation_steps * world_size
        if self.global_batch_size % parts:
            raise ValueError(
                f"parallel.global_batch_size {self.global_batch_size} cannot be divided by "
                f"parallel.accumulation_steps {self.accumulation_steps} × {world_size} processes"
            )
        return self.global_batch_size // parts

    def uses_bf16(self, device: torch.device) -> bool:
        """Whether the step computes in bfloat16 on ``device``."""
        if self.precision == "auto":
            return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return self.precision == "bf16"


def build_engine(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: ParallelConfig,
    world: World,
) -> Any:
    """A DeepSpeed engine around ``module``.

    Gradient clipping is not DeepSpeed's here (`engine.training.optimizer.clip_gradients`): its own reads the norm
    on the host in every step.

    Args:
        module: An `Objective`.
        optimizer: Over the module's parameters.
        config: Batch, ZeRO stage and precision.
        world: The processes.
    """
    deepspeed = import_deepspeed()
    zero: dict[str, object] = {"stage": config.zero_stage}
    if config.zero_stage:
        zero |= {
            "compute_grad_norm": False,
            "reduce_bucket_size": BUCKET,
            "overlap_comm": config.overlap_comm,
        }
    settings = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size(world.size),
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        # Gradients are summed over the ranks in float32: no module's may go in bfloat16.
        "torch_autocast": {
            "enabled": config.uses_bf16(world.device),
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    engine.checkpoint_engine = _KeptStates(engine.checkpoint_engine)
    engine._copy_recovery_script = lambda _: None  # programs, which no checkpoint is to hold
    if config.zero_stage == 0:
        # DeepSpeed calls it after each backward pass. Its own exchanges nothing before, and copies all twice.
        mean = OverlappedMean(module.parameters(), engine.is_gradient_accumulation_boundary)
        engine.allreduce_gradients = mean.finish
    return engine


class _KeptStates:
    """DeepSpeed's checkpoint engine, which keeps a copy of what it is told to save and writes nothing.

    Args:
        inner: DeepSpeed's own.

    Attributes:
        kept: What `copy_state` is to return.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.kept: dict[Path, Any] = {}

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Copies a state to the host's memory."""
        self.kept[Path(path)] = copy_to_host(state_dict)

    def preserves_storage_sharing(self) -> bool:
        """Whether DeepSpeed must copy views before it saves them, lest all that they are views of be written: no."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def copy_state(engine: Any, folder: Path, tag: str) -> dict[Path, Any]:
    """This rank's part of the engine's state, copied as `copy_to_host` does; every rank calls it.

    Args:
        engine: The engine.
        folder: DeepSpeed makes the folder ``tag`` in it.
        tag: Of a checkpoint, for DeepSpeed to find.

    Returns:
        What each of this rank's files is to hold, for ``torch.save``; behind it ``folder`` is there for every rank.
    """
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    kept, engine.checkpoint_engine.kept = engine.checkpoint_engine.kept, {}
    return kept


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that takes the steps, within DeepSpeed's own where ZeRO partitions."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def partition_gradients(engine: Any, zero_stage: int) -> list[Tensor]:
    """The averaged gradients that this rank's optimizer is about to use, to be changed in place.

    With ZeRO 1 and 2 DeepSpeed keeps them in ``averaged_gradients``, as one flat tensor a group where it could.
    """
    if zero_stage == 0:
        return [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    gradients: list[Tensor] = []
    for group in engine.optimizer.averaged_gradients.values():
        flat = getattr(group, "flat_partition", None)
        gradients += [flat] if flat is not None else list(group)
    return gradients
