"""The plain float32 weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from engine.checkpoints.folder import CheckpointError, find_checkpoints
from models.weights.tensor_files import write_safetensors


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the float32 weights of ``model``; parameters and persistent buffers, under their own names."""
    write_safetensors(path, to_float32({name: value.cpu() for name, value in model.state_dict().items()}))


def to_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are stored."""
    return {name: value.detach().float().contiguous() for name, value in weights.items()}


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint's ``model.safetensors``.

    Args:
        path: The file, a checkpoint's folder, or a run's folder (its newest checkpoint is taken).

    Raises:
        CheckpointError: If there is no such thing.
    """
    if path.is_dir() and (path / "checkpoints").is_dir():
        checkpoints = find_checkpoints(path)
        if not checkpoints:
            raise CheckpointError(f"{path}: the run has no complete checkpoint yet")
        path = checkpoints[-1].path
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


@torch.no_grad()
def weights_are_finite(module: nn.Module) -> bool:
    """Whether no parameter of this rank holds NaN or infinity."""
    sums = torch.stack([parameter.float().sum() for parameter in module.parameters()])
    return bool(torch.isfinite(sums).all().item())
