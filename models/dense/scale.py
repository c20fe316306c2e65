"""The learned factor between similarities and the logits of the contrast, and what holds it in its range."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Calibration(nn.Module):
    """DenseAV's: ``w · s - mean(w · s)`` with ``w = exp(log_w)``, held within 0.01 … 100.

    The mean is that of the whole batch; it changes no InfoNCE.

    Args:
        initial: w at the start.
    """

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        if initial <= 0:
            raise ValueError(f"the calibration's initial factor is {initial}: it must be above 0")
        self.initial = initial
        self.log_w = nn.Parameter(torch.tensor([math.log(initial)]))

    def factor(self) -> Tensor:
        """(1,) w."""
        return self.log_w.exp().clamp(0.01, 100.0)

    def forward(self, similarity: Tensor) -> Tensor:
        """(B, B) of the joint batch -> logits."""
        scaled = self.factor() * similarity
        return scaled - scaled.mean()

    def penalty(self) -> Tensor:
        """``max(0, log w_0 - log w)²``: the factor should not fall below where it began."""
        return (math.log(self.initial) - self.factor().log()).clamp_min(0).square().mean()


class Temperature(nn.Module):
    """Max-mean's: ``s / T`` with a learned divisor T.

    Args:
        initial: T at the start.
        low: Below this T the penalty grows.
        high: Above this likewise.
    """

    def __init__(self, initial: float = 2.0, low: float = 2.3, high: float = 4.0) -> None:
        super().__init__()
        if not 0 < low <= high or initial <= 0:
            raise ValueError(
                f"temperature {initial} in the range {low} … {high}: all must be above 0, low at most high"
            )
        self.low, self.high = low, high
        self.value = nn.Parameter(torch.tensor([float(initial)]))

    def factor(self) -> Tensor:
        """(1,) 1 / T."""
        return 1 / self.value

    def forward(self, similarity: Tensor) -> Tensor:
        """(B, B) -> logits."""
        return similarity / self.value

    def penalty(self) -> Tensor:
        """``max(0, log low - log T)⁴ + max(0, log T - log high)⁴``."""
        log = self.value.log()
        outside = F.relu(math.log(self.low) - log) ** 4 + F.relu(log - math.log(self.high)) ** 4
        return outside.mean()
