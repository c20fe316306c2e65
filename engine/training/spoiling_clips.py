"""Which clips of a batch spoil its step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from datasets.batch import AVBatch
from engine.objectives.base import Objective
from engine.parallel.world import alone


def spoiling_clips(
    objective: Objective[Any], batches: Iterable[AVBatch], device: torch.device, bf16: bool
) -> list[str]:
    """Clips that give a loss or a gradient that is not finite by themselves, with the weights as they are.

    A step may be spoilt without any such clip: by clips together, or by weights that have changed since.

    Args:
        objective: The objective.
        batches: This process's micro-batches of the step.
        device: The objective's.
        bf16: Whether the step computes in bfloat16.

    Returns:
        Their ids.
    """
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    found = []
    with alone():
        for batch in batches:
            for i, name in enumerate(batch.ids):
                clip = batch.part(slice(i, i + 1)).to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = objective(clip)["loss"]
                # Not `backward`, which DeepSpeed's hooks would take part in.
                gradients = torch.autograd.grad(loss, learned, allow_unused=True)
                values = [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
                if not all(bool(value.isfinite().all()) for value in values):
                    found.append(name)
    return found
