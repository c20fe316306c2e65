"""What MAViL's passes cost; see `models.workload` for what is counted."""

from __future__ import annotations

from models.mavil.config import MavilModelConfig
from models.workload import block_bytes, block_flops, linear_flops, number_bytes


def _tower_tokens(audio: int, visual: int) -> int:
    """With the CLS tokens of the modalities present."""
    return audio + (audio > 0) + visual + (visual > 0)


def _fusion_tokens(config: MavilModelConfig, audio: int, visual: int) -> int:
    """With the bottleneck, which each modality passes through a block of its own."""
    return _tower_tokens(audio, visual) + config.bottleneck_tokens * ((audio > 0) + (visual > 0))


def tower_flops(config: MavilModelConfig, audio: int, visual: int) -> float:
    """Of both towers over so many patches of one clip."""
    arch = config.architecture
    embedding = linear_flops(audio, config.audio_patch_dim, arch.embed_dim)
    embedding += linear_flops(visual, config.visual_patch_dim, arch.embed_dim)
    return embedding + arch.depth * block_flops(
        _tower_tokens(audio, visual), arch.embed_dim, config.mlp_ratio
    )


def fusion_flops(config: MavilModelConfig, audio: int, visual: int) -> float:
    """Of the fusion blocks over so many patches of one clip."""
    arch = config.architecture
    tokens = _fusion_tokens(config, audio, visual)
    return arch.fusion_depth * block_flops(tokens, arch.embed_dim, config.mlp_ratio)


def decoder_flops(config: MavilModelConfig, *, patches: bool, features: bool) -> float:
    """Of both decoders with the last layers that are used; all tokens of one clip pass them."""
    arch, dim = config.architecture, config.architecture.decoder_embed_dim
    audio, visual = config.num_audio_tokens, config.num_visual_tokens
    flops = linear_flops(config.num_kept_audio + config.num_kept_visual + 2, arch.embed_dim, dim)
    flops += arch.decoder_depth * block_flops(audio + visual + 2, dim, config.mlp_ratio)
    if patches:
        flops += linear_flops(audio, dim, config.audio_patch_dim)
        flops += linear_flops(visual, dim, config.visual_patch_dim)
    return flops + (linear_flops(audio + visual, dim, arch.embed_dim) if features else 0.0)


def encoder_bytes(config: MavilModelConfig, audio: int, visual: int, bf16: bool, *, fuse: bool) -> int:
    """Bytes that one clip's pass through towers (and fusion) keeps for the backward pass.

    Args:
        config: The model.
        audio: Audio patches of the clip in the encoder.
        visual: Visual patches likewise.
        bf16: Whether autocast computes in 16 bits.
        fuse: Whether the fusion blocks are passed.
    """
    arch = config.architecture
    block = block_bytes(arch.embed_dim, arch.num_heads, config.mlp_ratio, bf16)
    patches = (audio * config.audio_patch_dim + visual * config.visual_patch_dim) * number_bytes(bf16)
    tokens, fused = _tower_tokens(audio, visual), _fusion_tokens(config, audio, visual) if fuse else 0
    passing = tokens * arch.depth + fused * arch.fusion_depth
    if config.activation_checkpointing:
        return round(patches + 4 * passing * arch.embed_dim + max(tokens, fused) * block)
    return round(patches + passing * block)


def decoder_bytes(config: MavilModelConfig, bf16: bool, *, patches: bool, features: bool) -> int:
    """Bytes that one clip's pass through both decoders keeps, with the errors of what they predict."""
    arch, wide, dim = config.architecture, number_bytes(bf16), config.architecture.decoder_embed_dim
    audio, visual = config.num_audio_tokens, config.num_visual_tokens
    block = block_bytes(dim, arch.decoder_num_heads, config.mlp_ratio, bf16)
    passing = (audio + visual + 2) * arch.decoder_depth
    ends = (config.num_kept_audio + config.num_kept_visual + 2) * wide * arch.embed_dim
    ends += (audio + visual) * (4 + wide) * dim
    if patches:
        ends += 4 * (audio * config.audio_patch_dim + visual * config.visual_patch_dim)
    if features:
        ends += 4 * (audio + visual) * arch.embed_dim
    if config.activation_checkpointing:
        return round(ends + 4 * passing * dim + (audio + visual + 2) * block)
    return round(ends + passing * block)
