"""What CAV-MAE's passes cost; see `models.workload` for what is counted."""

from __future__ import annotations

from models.cav_mae.config import CavMaeModelConfig
from models.workload import block_bytes, block_flops, linear_flops, number_bytes


def encoder_flops(
    config: CavMaeModelConfig, audio_tokens: int, visual_tokens: int, joint_passes: int
) -> float:
    """Of the encoder over so many tokens of one clip, the joint blocks passed ``joint_passes`` times by all of them."""
    arch, patch = config.architecture, config.patch_size**2
    passes = arch.modality_depth + arch.joint_depth * joint_passes
    embedding = linear_flops(audio_tokens, patch, arch.embed_dim)
    embedding += linear_flops(visual_tokens, 3 * patch, arch.embed_dim)
    return embedding + passes * block_flops(audio_tokens + visual_tokens, arch.embed_dim, config.mlp_ratio)


def decoder_flops(config: CavMaeModelConfig, kept: int) -> float:
    """Of the decoder over all tokens of one clip, ``kept`` of which the encoder gave."""
    arch, patch, dim = config.architecture, config.patch_size**2, config.architecture.decoder_embed_dim
    audio, visual = config.num_audio_tokens, config.num_visual_tokens
    blocks = arch.decoder_depth * block_flops(audio + visual, dim, config.mlp_ratio)
    predictions = linear_flops(audio, dim, patch) + linear_flops(visual, dim, 3 * patch)
    return linear_flops(kept, arch.embed_dim, dim) + blocks + predictions


def forward_flops(config: CavMaeModelConfig, *, reconstruct: bool = True, contrast: bool = True) -> float:
    """FLOPs of one clip's pretraining forward pass.

    Removed tokens pass the decoder only; the joint blocks are passed once together and once by each modality alone.
    """
    audio, visual = config.num_kept_audio, config.num_kept_visual
    flops = encoder_flops(config, audio, visual, reconstruct + contrast)
    return flops + (decoder_flops(config, audio + visual) if reconstruct else 0.0)


def training_flops(config: CavMaeModelConfig, *, reconstruct: bool = True, contrast: bool = True) -> float:
    """FLOPs of one clip in a training step: 206 GFLOP for ViT-B at the published setting."""
    return 3.0 * forward_flops(config, reconstruct=reconstruct, contrast=contrast)


def activation_bytes(
    config: CavMaeModelConfig, tokens: int, joint_passes: int, bf16: bool, decode: bool
) -> int:
    """Bytes that one clip's forward pass keeps for the backward pass.

    With activation checkpointing a block keeps its input, and one block at a time is there in full. Beside the
    blocks count patches, last norms and the errors of the predictions.

    Args:
        config: The model.
        tokens: Tokens of the clip in the encoder.
        joint_passes: How often they pass the joint blocks.
        bf16: Whether autocast computes in 16 bits.
        decode: Whether the decoder runs, over all tokens.
    """
    arch, wide = config.architecture, number_bytes(bf16)
    patch = config.patch_size**2
    passing = tokens * (arch.modality_depth + arch.joint_depth * joint_passes)
    encoder = block_bytes(arch.embed_dim, arch.num_heads, config.mlp_ratio, bf16)
    ends = tokens * (2 * patch * wide + joint_passes * 4 * arch.embed_dim)
    largest, kept = tokens * joint_passes * encoder, 4.0 * passing * arch.embed_dim
    full = passing * encoder
    if decode:
        all_tokens = config.num_audio_tokens + config.num_visual_tokens
        decoder = block_bytes(arch.decoder_embed_dim, arch.decoder_num_heads, config.mlp_ratio, bf16)
        ends += tokens * wide * arch.embed_dim + all_tokens * (4 + wide) * arch.decoder_embed_dim
        ends += 4 * patch * (config.num_audio_tokens + 3 * config.num_visual_tokens)
        largest = max(largest, all_tokens * decoder)
        kept += 4 * all_tokens * arch.decoder_depth * arch.decoder_embed_dim
        full += all_tokens * arch.decoder_depth * decoder
    return round(ends + (kept + largest if config.activation_checkpointing else full))
