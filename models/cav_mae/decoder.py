"""The decoder of the masked autoencoder: kept tokens and mask tokens in, every patch out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cav_mae.config import CavMaeModelConfig
from models.layers.blocks import Block, init_weights, run_blocks
from models.layers.position import sincos_2d


class AudioVisualDecoder(nn.Module):
    """Reconstructs the patches of both modalities together.

    Args:
        config: Sizes of model and input.
    """

    pos_embed_audio: Tensor
    pos_embed_visual: Tensor

    def __init__(self, config: CavMaeModelConfig) -> None:
        super().__init__()
        arch = config.architecture
        dim = arch.decoder_embed_dim
        self.recompute = config.activation_checkpointing
        self.embed = nn.Linear(arch.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.modality_embed_audio = nn.Parameter(torch.empty(dim))
        self.modality_embed_visual = nn.Parameter(torch.empty(dim))
        self.register_buffer("pos_embed_audio", sincos_2d(dim, config.audio_grid))
        self.register_buffer("pos_embed_visual", sincos_2d(dim, config.visual_grid))
        self.blocks = nn.ModuleList(
            Block(dim, arch.decoder_num_heads, config.mlp_ratio, config.layer_norm_eps)
            for _ in range(arch.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.pred_audio = nn.Linear(dim, config.patch_size**2)
        self.pred_visual = nn.Linear(dim, config.patch_size**2 * 3)
        self.apply(init_weights)
        for token in (self.mask_token, self.modality_embed_audio, self.modality_embed_visual):
            nn.init.normal_(token, std=0.02)

    def forward(self, latent: Tensor, keep_audio: Tensor, keep_visual: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts every patch, kept or removed.

        Args:
            latent: (B, Ka + Kv, D) the joint stream.
            keep_audio: (B, Ka) which audio tokens its first Ka are.
            keep_visual: (B, Kv) which visual tokens its last Kv are.

        Returns:
            (B, La, P*P) audio patches and (B, Lv, P*P*3) visual patches.
        """
        x = self.embed(latent)
        num_audio, num_visual = len(self.pos_embed_audio), len(self.pos_embed_visual)
        # One scatter puts the kept tokens of both modalities at their places among mask tokens.
        ids = torch.cat([keep_audio, keep_visual + num_audio], dim=1)[:, :, None].expand_as(x)
        tokens = self.mask_token.to(x.dtype).expand(len(x), num_audio + num_visual, -1)
        places = torch.cat(
            [
                self.pos_embed_audio + self.modality_embed_audio,
                self.pos_embed_visual + self.modality_embed_visual,
            ]
        )
        x = tokens.scatter(1, ids, x) + places
        x = run_blocks(self.blocks, x, self.recompute)
        audio, visual = self.norm(x).split([num_audio, num_visual], dim=1)
        return self.pred_audio(audio), self.pred_visual(visual)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {"mask_token", "modality_embed_audio", "modality_embed_visual"}
