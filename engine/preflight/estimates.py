"""How much memory weights, gradients and the optimizer take on a GPU."""

from __future__ import annotations

from engine.parallel.deepspeed_engine import BUCKET
from engine.parallel.reduction import BUCKET as BUCKET_WITHOUT_ZERO


def state_bytes(
    parameters: int, trainable: int, world_size: int, zero_stage: int, bf16: bool, overlap_comm: bool = False
) -> int:
    """Bytes of weights, gradients and Adam's state on a GPU (arXiv 1910.02054, with float32 weights).

    Stages 1 and 2 update a copy of each rank's part of the weights, which counts with Adam's moments. Gradients
    are reduced through a buffer, which several processes have besides.

    Args:
        parameters: Of the model.
        trainable: Those of them that are trained.
        world_size: Processes.
        zero_stage: 1 partitions Adam's moments, 2 also the gradients.
        bf16: Whether autocast keeps 16-bit copies of the weights.
        overlap_comm: Whether ZeRO has a second buffer, to reduce one while the other is filled.
    """
    gradients = 4 * trainable // (world_size if zero_stage >= 2 else 1)
    moments = 12 * trainable // world_size if zero_stage >= 1 else 8 * trainable
    bucket = min(trainable, BUCKET_WITHOUT_ZERO) * (world_size > 1)
    if zero_stage:
        bucket = BUCKET * (2 if overlap_comm else 1)
    return (6 if bf16 else 4) * parameters + gradients + moments + 4 * bucket
