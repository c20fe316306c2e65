"""What EquiAV's passes cost; see `models.workload` for what is counted."""

from __future__ import annotations

from models.equiav.config import EquiAvModelConfig
from models.equiav.transforms import AUDIO_DESCRIPTION, VISUAL_DESCRIPTION
from models.workload import block_bytes, block_flops, linear_flops, number_bytes


def tower_flops(config: EquiAvModelConfig, audio: bool, visual: bool) -> float:
    """Of the towers of the modalities given, over all tokens of one clip."""
    arch, patch, flops = config.architecture, config.patch_size**2, 0.0
    for present, tokens, values in _modalities(config, audio, visual):
        flops += present * linear_flops(tokens, values * patch, arch.embed_dim)
        flops += present * arch.modality_depth * block_flops(tokens, arch.embed_dim, config.mlp_ratio)
    return flops


def tower_bytes(config: EquiAvModelConfig, audio: bool, visual: bool, bf16: bool) -> int:
    """Bytes that the towers keep of one clip for the backward pass.

    With activation checkpointing a block keeps its input, and one block at a time is there in full.
    """
    arch, wide, patch = config.architecture, number_bytes(bf16), config.patch_size**2
    block = block_bytes(arch.embed_dim, arch.num_heads, config.mlp_ratio, bf16)
    kept, largest = 0.0, 0.0
    for present, tokens, values in _modalities(config, audio, visual):
        ends = values * patch * wide + 4 * arch.embed_dim
        inner = arch.modality_depth * (4 * arch.embed_dim if config.activation_checkpointing else block)
        kept += present * tokens * (ends + inner)
        largest = max(largest, present * tokens * block)
    return round(kept + (largest if config.activation_checkpointing else 0.0))


def head_flops(config: EquiAvModelConfig, transformations: int) -> float:
    """Of predictors and projection heads for one clip, the centroid taken over so many transformations (0: none)."""
    arch, flops = config.architecture, 0.0
    attention = arch.predictor_heads * arch.predictor_head_dim
    for tokens, numbers in (
        (config.num_audio_tokens, AUDIO_DESCRIPTION),
        (config.num_visual_tokens, VISUAL_DESCRIPTION),
    ):
        queries = 1 + transformations
        flops += linear_flops(queries, numbers, arch.transform_dim)
        flops += 2 * linear_flops(queries, arch.transform_dim, arch.transform_dim)
        flops += linear_flops(queries, arch.transform_dim, attention)
        flops += linear_flops(queries, attention, arch.embed_dim)
        flops += 2 * linear_flops(queries, arch.embed_dim, int(arch.embed_dim * config.mlp_ratio))
        flops += 2 * linear_flops(tokens, arch.embed_dim, attention)
        hidden = linear_flops(1, arch.embed_dim, arch.projection_dim)
        hidden += linear_flops(1, arch.projection_dim, arch.projection_dim)
        flops += 3 * hidden + 2 * linear_flops(1, arch.projection_dim, arch.intra_dim)
        flops += linear_flops(1, arch.projection_dim, arch.inter_dim)
    return flops


def head_bytes(config: EquiAvModelConfig, transformations: int, bf16: bool) -> int:
    """Bytes that predictors and projection heads keep of one clip for the backward pass.

    The predictors keep the tokens in the precision of the products, their keys and values, and for each query what
    attention and MLP do; the last norms their input.
    """
    arch, wide, total = config.architecture, number_bytes(bf16), 0.0
    attention = arch.predictor_heads * arch.predictor_head_dim
    query = wide * (6 * arch.transform_dim + 2 * attention) + 4 * arch.transform_dim
    query += 8 * arch.embed_dim + wide * (1 + 2 * config.mlp_ratio) * arch.embed_dim
    for tokens in (config.num_audio_tokens, config.num_visual_tokens):
        total += tokens * (8 * arch.embed_dim + wide * arch.embed_dim * bf16)
        total += tokens * 2 * attention * wide
        total += (1 + transformations) * query
        total += 3 * 2 * (4 + 2 * wide) * arch.projection_dim
    return round(total)


def _modalities(config: EquiAvModelConfig, audio: bool, visual: bool) -> tuple[tuple[bool, int, int], ...]:
    """Presence, tokens and channels of each modality."""
    return (audio, config.num_audio_tokens, 1), (visual, config.num_visual_tokens, 3)
