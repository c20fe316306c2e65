"""EquiAV (Kim et al. 2024): towers, a predictor of what a transformation does to a feature, projection heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.equiav.config import EquiAvModelConfig
from models.equiav.encoder import EquiAvEncoder
from models.equiav.transforms import AUDIO_DESCRIPTION, VISUAL_DESCRIPTION
from models.layers.blocks import Mlp, attend, init_weights


class Projections(NamedTuple):
    """What the losses compare of one modality; not normalised.

    Attributes:
        inter: (B, E) ``z_inv``, for the contrast with the other modality.
        predicted: (B, I) ``z_equi``, the feature of the original moved by the described transformation.
        augmented: (B, I) ``z_aug``, the feature of the transformed input.
    """

    inter: Tensor
    predicted: Tensor
    augmented: Tensor


class QuickGelu(nn.Module):
    """``x · sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * torch.sigmoid(1.702 * x)


class CrossAttention(nn.Module):
    """Queries of one width look at tokens of another; the heads' width is its own.

    Args:
        query_dim: Width of the queries.
        dim: Width D of the tokens and of the result.
        num_heads: Heads.
        head_dim: Width of each.
    """

    def __init__(self, query_dim: int, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(query_dim, num_heads * head_dim)
        self.to_k = nn.Linear(dim, num_heads * head_dim)
        self.to_v = nn.Linear(dim, num_heads * head_dim)
        self.to_out = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, Q) queries and (B, L, D) tokens -> (B, N, D)."""
        projected = (self.to_q(queries), self.to_k(tokens), self.to_v(tokens))
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.num_heads) for x in projected)
        return self.to_out(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))


class Predictor(nn.Module):
    """The feature that an input would have after a transformation, from its tokens and a description.

    ``y = mean(tokens) + attention(LN(encode(t)) -> tokens)``, then ``y + mlp(LN(y))``.

    Args:
        config: The model's.
        description_dim: Numbers in a description of a transformation.
    """

    def __init__(self, config: EquiAvModelConfig, description_dim: int) -> None:
        super().__init__()
        arch = config.architecture
        self.encode = nn.Sequential(
            nn.Linear(description_dim, arch.transform_dim),
            QuickGelu(),
            nn.Linear(arch.transform_dim, arch.transform_dim),
            QuickGelu(),
            nn.Linear(arch.transform_dim, arch.transform_dim),
        )
        self.norm_transform = nn.LayerNorm(arch.transform_dim, eps=config.layer_norm_eps)
        self.attn = CrossAttention(
            arch.transform_dim, arch.embed_dim, arch.predictor_heads, arch.predictor_head_dim
        )
        self.norm = nn.LayerNorm(arch.embed_dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(arch.embed_dim, int(arch.embed_dim * config.mlp_ratio))

    def forward(self, tokens: Tensor, descriptions: Tensor) -> Tensor:
        """(B, L, D) tokens of the original and (B, N, t) descriptions -> (B, N, D)."""
        queries = self.norm_transform(self.encode(descriptions))
        y = tokens.mean(dim=1, keepdim=True) + self.attn(queries, tokens)
        return y + self.mlp(self.norm(y))


class ProjectionHead(nn.Module):
    """Three linear layers, each with a LayerNorm, ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim, eps=eps)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim, eps=eps)
        self.fc3 = nn.Linear(hidden_dim, out_dim)
        self.norm3 = nn.LayerNorm(out_dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, out_dim)."""
        x = F.relu(self.norm1(self.fc1(x)))
        x = F.relu(self.norm2(self.fc2(x)))
        return self.norm3(self.fc3(x))


class EquivariantHeads(nn.Module):
    """What pretraining adds to the tower of one modality; thrown away afterwards.

    Args:
        config: The model's.
        description_dim: Numbers in a description of a transformation.
    """

    def __init__(self, config: EquiAvModelConfig, description_dim: int) -> None:
        super().__init__()
        arch = config.architecture
        sizes = (arch.embed_dim, arch.projection_dim)
        self.norm_augmented = nn.LayerNorm(arch.embed_dim, eps=config.layer_norm_eps)
        self.predictor = Predictor(config, description_dim)
        self.intra = ProjectionHead(*sizes, arch.intra_dim, config.layer_norm_eps)
        self.inter = ProjectionHead(*sizes, arch.inter_dim, config.layer_norm_eps)

    def forward(
        self, tokens: Tensor, augmented: Tensor, description: Tensor, centroid: Tensor | None
    ) -> Projections:
        """The projections that the losses compare.

        Args:
            tokens: (B, L, D) of the original, after the tower's last norm.
            augmented: (B, L, D) of the transformed input, before any last norm.
            description: (B, t) of its transformation.
            centroid: (B, N, t) as of `invariant`.
        """
        descriptions = description[:, None]
        if centroid is not None:
            descriptions = torch.cat([descriptions, centroid], dim=1)
        moved = self.predictor(tokens, descriptions)
        return Projections(
            inter=self.inter((tokens if centroid is None else moved[:, 1:]).mean(dim=1)),
            predicted=self.intra(moved[:, 0]),
            augmented=self.intra(self.norm_augmented(augmented).mean(dim=1)),
        )

    def invariant(self, tokens: Tensor, centroid: Tensor | None) -> Tensor:
        """``z_inv``: the projection of the mean prediction over some transformations, their *centroid*.

        Args:
            tokens: (B, L, D) of the original, after the tower's last norm.
            centroid: (B, N, t) descriptions of the transformations; None projects the mean token instead.

        Returns:
            (B, E), not normalised.
        """
        mean = tokens if centroid is None else self.predictor(tokens, centroid)
        return self.inter(mean.mean(dim=1))


class EquiAvHeads(nn.Module):
    """`EquivariantHeads` of both modalities.

    Args:
        config: The model's.
    """

    def __init__(self, config: EquiAvModelConfig) -> None:
        super().__init__()
        self.audio = EquivariantHeads(config, AUDIO_DESCRIPTION)
        self.visual = EquivariantHeads(config, VISUAL_DESCRIPTION)
        self.apply(_init_heads)


class EquiAv(nn.Module):
    """EquiAV. Losses are the caller's: `models.losses` on what ``forward`` returns.

    Args:
        config: Sizes of model and input.
    """

    def __init__(self, config: EquiAvModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EquiAvEncoder(config)
        self.heads = EquiAvHeads(config)

    def forward(
        self,
        fbank: tuple[Tensor, Tensor],
        frames: tuple[Tensor, Tensor],
        descriptions: tuple[Tensor, Tensor],
        centroids: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Projections, Projections]:
        """Both modalities, original and transformed.

        Args:
            fbank: (B, T, F) normalised log-mel and the same transformed.
            frames: (B, 3, H, W) normalised pictures and the same transformed.
            descriptions: (B, 24) and (B, 18): which transformations these are, audio and visual.
            centroids: (B, N, 24) and (B, N, 18) descriptions over which the centroid is taken; None for none.

        Returns:
            The projections of audio and visual.
        """
        encoder = self.encoder
        audio, audio_augmented = encoder.audio_tokens(torch.cat(fbank)).chunk(2)
        visual, visual_augmented = encoder.visual_tokens(torch.cat(frames)).chunk(2)
        centroid_audio, centroid_visual = centroids or (None, None)
        return (
            self.heads.audio(encoder.norm["audio"](audio), audio_augmented, descriptions[0], centroid_audio),
            self.heads.visual(
                encoder.norm["visual"](visual), visual_augmented, descriptions[1], centroid_visual
            ),
        )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


def _init_heads(module: nn.Module) -> None:
    """The published initialisation; `CrossAttention`'s output has no bias."""
    if isinstance(module, nn.Linear) and module.bias is None:
        nn.init.xavier_uniform_(module.weight)
    else:
        init_weights(module)
