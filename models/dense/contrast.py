"""Contrasts of a joint batch from its (B, B) logits: rows are sounds, columns pictures, matches on the diagonal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_margin(logits: Tensor, margin: float) -> Tensor:
    """The same with ``margin`` taken off every match, so that it must win by as much."""
    return logits - margin * torch.eye(len(logits), device=logits.device)


def _targets(logits: Tensor, leak: float) -> Tensor:
    """(B, B) of 1 - leak for a match and ``leak / (B - 1)`` for each other pair, rows adding up to 1."""
    match = torch.eye(len(logits), device=logits.device)
    targets = match * (1 - leak) + (1 - match) * (leak / max(1, len(logits) - 1))
    return targets / targets.sum(1, keepdim=True)


def nce(logits: Tensor, leak: float = 0.0) -> Tensor:
    """InfoNCE in both directions.

    ::

        y[i, j] = 1 - leak if i == j else leak / (B - 1)
        mean over i of -Σ_j y[i, j] log softmax_j(logits[i, :])[j], and the same of the transpose; half of each

    Args:
        logits: (B, B).
        leak: Share of the target given to the other pairs.

    Returns:
        () float32.
    """
    targets = _targets(logits, leak)
    rows = -(F.log_softmax(logits, dim=1) * targets).sum(1).mean()
    columns = -(F.log_softmax(logits.T, dim=1) * targets).sum(1).mean()
    return (rows + columns) / 2


def binary_cross_entropy(logits: Tensor, leak: float = 0.0) -> Tensor:
    """``mean over all pairs of -y log σ(logit) - (1 - y) log(1 - σ(logit))`` with the targets y of `nce`."""
    return F.binary_cross_entropy_with_logits(logits, _targets(logits, leak))


def hinge(logits: Tensor) -> Tensor:
    """``mean over all pairs i, j of max(0, logits[i, j] - logits[j, j])``; see `with_margin`."""
    return (logits - logits.diagonal()).clamp_min(0).mean()


def accuracy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Share of sounds that find their picture, and of pictures that find their sound; chance is 1/B."""
    labels = torch.arange(len(logits), device=logits.device)
    return (logits.argmax(1) == labels).float().mean(), (logits.argmax(0) == labels).float().mean()
