"""What CAV-MAE Sync's passes cost; see `models.workload` for what is counted."""

from __future__ import annotations

from dataclasses import dataclass

from models.cav_mae.workload import decoder_flops
from models.cav_mae_sync.config import CavMaeSyncModelConfig
from models.workload import block_bytes, block_flops, linear_flops, number_bytes


@dataclass(frozen=True)
class Pass:
    """One pass of one clip.

    Attributes:
        audio: Audio patches of a stretch that are looked at; 0 for no sound.
        visual: Visual patches that are looked at; 0 for no picture.
        joint: Whether the joint stream is computed.
        separate: Whether the one-modality streams are.
        segments: Stretches of sound, all beside the same picture.
        decode: Whether the decoder runs.
    """

    audio: int
    visual: int
    joint: bool = True
    separate: bool = True
    segments: int = 1
    decode: bool = False

    @property
    def patches(self) -> int:
        """Patches that are embedded."""
        return self.audio * self.segments + self.visual

    @property
    def sequences(self) -> int:
        """Sequences in the towers, each with a global token and registers."""
        return self.segments * (self.audio > 0) + (self.visual > 0)

    @property
    def joint_tokens(self) -> int:
        """Tokens of the joint stream, in which a picture comes once beside each stretch."""
        repeats = self.segments if self.audio else 1
        return self.joint * (self.audio * self.segments + self.visual * repeats)

    @property
    def separate_tokens(self) -> int:
        """Tokens of the one-modality streams."""
        return self.separate * (self.patches + self.sequences)


def pass_flops(config: CavMaeSyncModelConfig, work: Pass) -> float:
    """FLOPs of a forward pass."""
    arch, patch = config.architecture, config.patch_size**2
    tower_tokens = work.patches + work.sequences * (1 + config.num_registers)
    passing = tower_tokens * arch.modality_depth + work.joint_tokens * arch.joint_depth
    passing += work.separate_tokens * (arch.joint_depth + config.contrast_depth)
    flops = block_flops(passing, arch.embed_dim, config.mlp_ratio)
    flops += linear_flops(work.audio * work.segments + 3 * work.visual, patch, arch.embed_dim)
    return flops + (decoder_flops(config, work.audio + work.visual) if work.decode else 0.0)


def pass_bytes(config: CavMaeSyncModelConfig, work: Pass, bf16: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass.

    With activation checkpointing a block keeps its input, and the largest block at a time is there in full.
    """
    arch, wide, patch = config.architecture, number_bytes(bf16), config.patch_size**2
    tower = work.patches + work.sequences * (1 + config.num_registers)
    joint = work.joint_tokens + work.separate_tokens
    passing = tower * arch.modality_depth + joint * arch.joint_depth
    passing += work.separate_tokens * config.contrast_depth
    block = block_bytes(arch.embed_dim, arch.num_heads, config.mlp_ratio, bf16)
    ends = work.patches * 2 * patch * wide + joint * 4 * arch.embed_dim
    full, kept, largest = passing * block, 4.0 * passing * arch.embed_dim, max(tower, joint) * block
    if work.decode:
        tokens = config.num_audio_tokens + config.num_visual_tokens
        decoder = block_bytes(arch.decoder_embed_dim, arch.decoder_num_heads, config.mlp_ratio, bf16)
        ends += work.joint_tokens * wide * arch.embed_dim + tokens * (4 + wide) * arch.decoder_embed_dim
        ends += 4 * patch * (config.num_audio_tokens + 3 * config.num_visual_tokens)
        full += tokens * arch.decoder_depth * decoder
        kept += 4 * tokens * arch.decoder_depth * arch.decoder_embed_dim
        largest = max(largest, tokens * decoder)
    return round(ends + (kept + largest if config.activation_checkpointing else full))
