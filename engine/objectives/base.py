"""What the trainer knows of an objective: a module that joins a model and its losses.

A new objective is one file here and one config: a frozen dataclass of settings, and a module whose ``forward`` takes
a batch and returns named values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from datasets.batch import AVBatch

Model = TypeVar("Model", bound=nn.Module)


class LrGroup(NamedTuple):
    """Parameters that learn at a rate of their own.

    Attributes:
        name: For the log.
        scale: Their rate over the schedule's, at every step.
    """

    name: str
    scale: float


class Objective(nn.Module, ABC, Generic[Model]):
    """A model and its losses.

    Attributes:
        model: What is trained, and saved as plain weights.
    """

    model: Model

    @abstractmethod
    def forward(self, batch: AVBatch) -> dict[str, Tensor]:
        """The losses of a batch on the model's device.

        Returns:
            () float32 values by name, always the same names. ``loss`` carries the gradient; nothing else does.
        """

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Names of parameters, within ``model``, without weight decay (beside norms and biases)."""

    def lr_groups(self) -> dict[str, LrGroup]:
        """By name within ``model``, the parameters whose rate is not the schedule's."""
        return {}

    @abstractmethod
    def flops_per_sample(self) -> float:
        """FLOPs of a training step, forward and backward, for one sample."""


def detached(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """``values`` with the gradient on ``loss`` alone."""
    return {name: value if name == "loss" else value.detach() for name, value in values.items()}


def all_finite(values: list[Tensor]) -> Tensor:
    """() bool: whether all of them are finite."""
    return torch.isfinite(torch.stack([value.detach().float() for value in values])).all()
