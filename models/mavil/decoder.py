"""MAViL's decoders: kept tokens and mask tokens of one modality in, every patch or a teacher's features out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers.blocks import Block, init_weights, run_block
from models.layers.position import sincos_2d, sincos_3d
from models.mavil.config import MavilModelConfig


class Decoder(nn.Module):
    """Predicts what was removed of one modality, from its fused tokens alone.

    It has two last layers, of which an objective uses one or both: ``pred`` for patches and ``pred_features`` for the
    encoder-wide outputs of a teacher.

    Args:
        config: The model's.
        patch_dim: Values in a patch.
        positions: (L, d) for its own width.
    """

    pos_embed: Tensor

    def __init__(self, config: MavilModelConfig, patch_dim: int, positions: Tensor) -> None:
        super().__init__()
        arch, dim = config.architecture, positions.shape[1]
        self.recompute = config.activation_checkpointing
        self.embed = nn.Linear(arch.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.register_buffer("pos_embed", positions)
        self.blocks = nn.ModuleList(
            Block(dim, arch.decoder_num_heads, config.mlp_ratio, config.layer_norm_eps)
            for _ in range(arch.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.pred = nn.Linear(dim, patch_dim)
        self.pred_features = nn.Linear(dim, arch.embed_dim)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, ids_keep: Tensor) -> Tensor:
        """What the last layers see of every token, kept or removed.

        Args:
            tokens: (B, 1 + K, D) fused, the CLS token first.
            ids_keep: (B, K) which tokens the others are.

        Returns:
            (B, L, d), normalised.
        """
        x = self.embed(tokens)
        cls_token, kept = x[:, :1], x[:, 1:]
        full = self.mask_token.to(x.dtype).expand(len(x), len(self.pos_embed), -1)
        full = full.scatter(1, ids_keep[:, :, None].expand_as(kept), kept) + self.pos_embed
        x = torch.cat([cls_token, full], dim=1)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        return self.norm(x[:, 1:])


class Decoders(nn.Module):
    """A decoder for each modality.

    Args:
        config: The model's.
    """

    def __init__(self, config: MavilModelConfig) -> None:
        super().__init__()
        width = config.architecture.decoder_embed_dim
        self.audio = Decoder(config, config.audio_patch_dim, sincos_2d(width, config.audio_cells))
        self.visual = Decoder(config, config.visual_patch_dim, sincos_3d(width, config.visual_cells))
