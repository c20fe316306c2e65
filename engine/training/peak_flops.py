"""What this device can do at most, measured, so that utilisation needs no table of data sheets."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def measured_peak_flops(device: torch.device, bf16: bool) -> float:
    """What `measure_peak_flops` finds, once in a process."""
    return measure_peak_flops(device, bf16)


@torch.no_grad()
def measure_peak_flops(device: torch.device, bf16: bool, repeats: int = 5) -> float:
    """FLOP/s of a large matrix product in the given precision; about a second.

    Random operands: on zeros a device runs faster than it ever does on data.

    Args:
        device: Where to measure. On a CPU with the threads that torch has now.
        bf16: bfloat16, otherwise float32.
        repeats: Timed products; the median counts.
    """
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        _synchronize(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(seconds[1:])[repeats // 2]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
