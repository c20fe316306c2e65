"""What a pass costs: matrix-multiply FLOPs, and the bytes that autograd keeps. Building blocks for every family.

FLOPs counted are those of linear layers over the tokens that really pass them, a multiply-add being 2: patch
embeddings, qkv, attention output, MLPs, predictions. Not counted are attention scores and their product with the
values, norms, activations, biases, the front end and the losses. A training step is three forward passes, as the
literature counts: the backward pass is two products of the forward's size for each layer. Recomputation by
activation checkpointing is work, but not the model's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Workload:
    """What one clip costs in a training step.

    Attributes:
        flops: Of forward and backward pass.
        activations: Bytes kept for the backward pass.
    """

    flops: float
    activations: int


def linear_flops(rows: float, inputs: int, outputs: int) -> float:
    """Of a linear layer over so many rows."""
    return 2.0 * rows * inputs * outputs


def block_flops(tokens: float, dim: int, mlp_ratio: float) -> float:
    """Of a transformer block's linear layers."""
    return 2.0 * tokens * dim * (4 * dim + 2 * int(dim * mlp_ratio))


def block_bytes(dim: int, num_heads: int, mlp_ratio: float, bf16: bool) -> float:
    """Bytes that a transformer block keeps for each token.

    The inputs of its two norms (float32, as the residual stream is) with their statistics; and, in the precision of
    the products, what the norms say, q, k and v, what attention says (with its log-sum-exp: attention is fused) and
    the MLP's hidden layer before and after the GELU.
    """
    wide = number_bytes(bf16)
    return (2 * 4 + (6 + 2 * mlp_ratio) * wide) * dim + 16 + 4 * num_heads


def number_bytes(bf16: bool) -> int:
    """Bytes of a number in a product."""
    return 2 if bf16 else 4


def parameter_count(model: nn.Module, trainable_only: bool = True) -> int:
    """Numbers in the parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
