"""MAViL's encoder: a tower for each modality, then fusion blocks over the tokens of those present."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from models.encoders import Embeddings, Encoder
from models.layers.blocks import Block, init_weights, run_block
from models.layers.masking import gather_tokens
from models.layers.patches import patchify_audio, patchify_film
from models.layers.position import sincos_2d, sincos_3d
from models.mavil.config import MavilModelConfig
from models.mavil.workload import encoder_bytes, fusion_flops, tower_flops
from models.towers.base import Tokens


@dataclass(frozen=True)
class MavilTokens:
    """Tokens of the modalities present, each behind its CLS token.

    Attributes:
        audio: (B, 1 + Ka, D), or None.
        visual: (B, 1 + Kv, D), or None.
    """

    audio: Tensor | None = None
    visual: Tensor | None = None


def mean_of_patches(tokens: Tensor) -> Tensor:
    """The mean over tokens but the CLS token, in float32: (B, 1 + K, D) -> (B, D)."""
    return tokens[:, 1:].float().mean(dim=1)


def new_block(config: MavilModelConfig) -> Block:
    """A block of the encoder's width."""
    arch = config.architecture
    return Block(arch.embed_dim, arch.num_heads, config.mlp_ratio, config.layer_norm_eps)


class Tower(nn.Module):
    """Patches of one modality -> tokens: linear embedding, fixed positions, CLS token, blocks; no last norm.

    The positions are a buffer of the state, not a formula at load time: fine-tuned checkpoints may have trained them.

    Args:
        config: The model's.
        patch_dim: Values in a patch.
        positions: (L, D).
    """

    pos_embed: Tensor

    def __init__(self, config: MavilModelConfig, patch_dim: int, positions: Tensor) -> None:
        super().__init__()
        self.recompute = config.activation_checkpointing
        self.patch_embed = nn.Linear(patch_dim, positions.shape[1])
        self.cls_token = nn.Parameter(torch.empty(positions.shape[1]))
        self.register_buffer("pos_embed", positions)
        self.blocks = nn.ModuleList(new_block(config) for _ in range(config.architecture.depth))
        self.apply(init_weights)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, patches: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Tokens of the kept patches, in the order of ``ids_keep``; only these are computed.

        Args:
            patches: (B, L, P).
            ids_keep: (B, K), or None for all in order.

        Returns:
            (B, 1 + K, D), the CLS token first.
        """
        if ids_keep is None:
            x = self.patch_embed(patches) + self.pos_embed
        else:
            x = self.patch_embed(gather_tokens(patches, ids_keep)) + self.pos_embed[ids_keep]
        x = torch.cat([self.cls_token.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        return x


class Fusion(nn.Module):
    """Plain blocks over [CLS, audio, CLS, visual], with one set of norms and none at the end.

    Args:
        config: The model's.
    """

    def __init__(self, config: MavilModelConfig) -> None:
        super().__init__()
        self.recompute = config.activation_checkpointing
        self.blocks = nn.ModuleList(new_block(config) for _ in range(config.architecture.fusion_depth))
        self.apply(init_weights)

    def forward(self, tokens: MavilTokens) -> MavilTokens:
        """The tokens of the modalities present, each having seen all of them."""
        present = [x for x in (tokens.audio, tokens.visual) if x is not None]
        x = torch.cat(present, dim=1)
        for block in self.blocks:
            x = run_block(block, x, self.recompute)
        parts = list(x.split([part.shape[1] for part in present], dim=1))
        return MavilTokens(
            None if tokens.audio is None else parts[0], None if tokens.visual is None else parts[-1]
        )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return set()


class BottleneckFusion(nn.Module):
    """Blocks of each modality's own that meet in a few bottleneck tokens (MBT, arXiv 2107.00135, section 3.2).

    ::

        for each layer:
            audio, z_a  = block_a([audio, z])
            visual, z_v = block_v([visual, z])
            z = (z_a + z_v) / 2          # of those present

    Args:
        config: The model's; ``bottleneck_tokens`` is above 0.
    """

    def __init__(self, config: MavilModelConfig) -> None:
        super().__init__()
        arch = config.architecture
        self.recompute = config.activation_checkpointing
        self.bottleneck = nn.Parameter(torch.empty(config.bottleneck_tokens, arch.embed_dim))
        self.audio_blocks = nn.ModuleList(new_block(config) for _ in range(arch.fusion_depth))
        self.visual_blocks = nn.ModuleList(new_block(config) for _ in range(arch.fusion_depth))
        self.apply(init_weights)
        nn.init.normal_(self.bottleneck, std=0.02)

    def forward(self, tokens: MavilTokens) -> MavilTokens:
        """The tokens of the modalities present, each having seen its own and the bottleneck."""
        audio, visual = tokens.audio, tokens.visual
        some = audio if audio is not None else visual
        assert some is not None
        shared = self.bottleneck.to(some.dtype).expand(some.shape[0], -1, -1)
        for audio_block, visual_block in zip(self.audio_blocks, self.visual_blocks, strict=True):
            seen = []
            if audio is not None:
                audio, bottleneck = self._through(audio_block, audio, shared)
                seen.append(bottleneck)
            if visual is not None:
                visual, bottleneck = self._through(visual_block, visual, shared)
                seen.append(bottleneck)
            shared = torch.stack(seen).mean(dim=0)
        return MavilTokens(audio, visual)

    def _through(self, block: nn.Module, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        x = run_block(block, torch.cat([own, shared], dim=1), self.recompute)
        return x[:, : own.shape[1]], x[:, own.shape[1] :]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {"bottleneck"}


class MavilEncoder(Encoder[MavilModelConfig]):
    """Towers and fusion blocks of MAViL (arXiv 2212.08071, figure 2).

    Args:
        config: Sizes of model and input.
    """

    def __init__(self, config: MavilModelConfig) -> None:
        super().__init__()
        width = config.architecture.embed_dim
        self.config = config
        self.audio = Tower(config, config.audio_patch_dim, sincos_2d(width, config.audio_cells))
        self.visual = Tower(config, config.visual_patch_dim, sincos_3d(width, config.visual_cells))
        self.fusion = BottleneckFusion(config) if config.bottleneck_tokens else Fusion(config)

    def patchify_audio(self, fbank: Tensor) -> Tensor:
        """(B, T, F) -> (B, La, P*P), row-major over (time, frequency), values ordered (time, frequency) too."""
        return patchify_audio(fbank.mT, self.config.patch_size)

    def patchify_visual(self, frames: Tensor) -> Tensor:
        """(B, N, 3, H, W) -> (B, Lv, tubelet*P*P*3), row-major over (moment, row, column)."""
        return patchify_film(frames, self.config.tubelet, self.config.patch_size)

    def towers(
        self,
        fbank: Tensor | None = None,
        frames: Tensor | None = None,
        keep_audio: Tensor | None = None,
        keep_visual: Tensor | None = None,
    ) -> MavilTokens:
        """Each modality through its tower, none seeing the other.

        Args:
            fbank: (B, T, F) normalised log-mel, or None.
            frames: (B, N, 3, H, W) normalised pictures, (B, 3, H, W) where N is 1, or None.
            keep_audio: (B, Ka) ids of the audio tokens to look at; None for all.
            keep_visual: (B, Kv) ids of the visual tokens to look at; None for all.

        Raises:
            ValueError: No modality is present, or an input has another size than the config says.
        """
        config, audio, visual = self.config, None, None
        if fbank is not None:
            size = (config.audio_length, config.num_mel_bins)
            _check(fbank, size, "fbank", "audio_length, num_mel_bins")
            audio = self.audio(self.patchify_audio(fbank), keep_audio)
        if frames is not None:
            frames = frames[:, None] if frames.ndim == 4 else frames
            size = (config.num_frames, 3, config.image_size, config.image_size)
            _check(frames, size, "frames", "frames, 3, image_size, image_size")
            visual = self.visual(self.patchify_visual(frames), keep_visual)
        if audio is None and visual is None:
            raise ValueError("the encoder needs fbank, frames or both, and got neither")
        return MavilTokens(audio, visual)

    def forward(
        self,
        fbank: Tensor | None = None,
        frames: Tensor | None = None,
        keep_audio: Tensor | None = None,
        keep_visual: Tensor | None = None,
    ) -> MavilTokens:
        """Towers, then fusion; arguments as of `towers`."""
        return self.fusion(self.towers(fbank, frames, keep_audio, keep_visual))

    @property
    def feature_dim(self) -> int:
        """See `Encoder.feature_dim`: the means of both modalities side by side."""
        return 2 * self.config.architecture.embed_dim

    @property
    def num_layers(self) -> int:
        """See `Encoder.num_layers`."""
        return self.config.architecture.depth + self.config.architecture.fusion_depth

    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        """See `Encoder.embed`: means of the towers' tokens, and of both modalities' fused tokens side by side."""
        towers = self.towers(
            fbank, frames, None if fbank is None else self._first_moments(audio_columns, fbank)
        )
        joint = None
        if towers.audio is not None and towers.visual is not None:
            joint = _side_by_side(self.fusion(towers))
        return Embeddings(_mean(towers.audio), _mean(towers.visual), joint)

    def features(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        *,
        trained_on_both: bool = True,
        pool_separate: bool = False,
    ) -> Tensor:
        """See `Encoder.features`.

        As published, with both modalities their means after fusion stand side by side (with ``pool_separate`` the
        means of this and of the towers), and a modality trained alone is the mean of its tower. Where the other one is
        absent its half repeats what is there, which leaves norm and head the published ones; a model trained on both
        takes what is there through the fusion blocks alone.
        """
        towers = self.towers(fbank, frames)
        both = towers.audio is not None and towers.visual is not None
        if not (both or trained_on_both):
            return _side_by_side(towers)
        fused = _side_by_side(self.fusion(towers))
        return (fused + _side_by_side(towers)) / 2 if both and pool_separate else fused

    def sound_tokens(self, fbank: Tensor, columns: Tensor | None = None) -> Tokens:
        """See `Encoder.sound_tokens`: those of the tower."""
        found = self.towers(fbank, None).audio
        assert found is not None
        moments, bins = self.config.audio_cells
        patches = rearrange(found[:, 1:], "b (t f) d -> b (f t) d", t=moments)
        return Tokens(patches, patches.new_ones(patches.shape[:2]).bool(), (bins, moments), found[:, 0])

    def frame_tokens(self, frames: Tensor) -> Tokens:
        """See `Encoder.frame_tokens`: those of the tower."""
        found = self.towers(None, frames).visual
        assert found is not None
        patches = found[:, 1:]
        grid = self.config.visual_cells
        return Tokens(patches, patches.new_ones(patches.shape[:2]).bool(), tuple(grid), found[:, 0])

    def depth_of(self, name: str) -> int:
        """See `Encoder.depth_of`."""
        words = name.split(".")
        block = next((int(word) for word in words if word.isdigit()), None)
        if block is None:
            return self.config.architecture.depth + 1 if words[0] == "fusion" else 0
        return 1 + block + (self.config.architecture.depth if words[0] == "fusion" else 0)

    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        """See `Encoder.feature_flops`."""
        tokens = self.config.num_audio_tokens * audio, self.config.num_visual_tokens * visual
        flops = tower_flops(self.config, *tokens)
        return flops + (fusion_flops(self.config, *tokens) if audio and visual else 0.0)

    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        """See `Encoder.feature_activations`."""
        tokens = self.config.num_audio_tokens * audio, self.config.num_visual_tokens * visual
        return encoder_bytes(self.config, *tokens, bf16, fuse=audio and visual)

    def _first_moments(self, count: int | None, fbank: Tensor) -> Tensor | None:
        """(B, K) ids of the audio tokens in the first ``count`` moments; None for all."""
        moments, bins = self.config.audio_cells
        if count is None or count == moments:
            return None
        return torch.arange(count * bins, device=fbank.device).expand(len(fbank), -1)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        own = {"audio.cls_token", "visual.cls_token"}
        return own | {f"fusion.{name}" for name in self.fusion.no_weight_decay()}


def _mean(tokens: Tensor | None) -> Tensor | None:
    return None if tokens is None else mean_of_patches(tokens)


def _side_by_side(tokens: MavilTokens) -> Tensor:
    """(B, 2D) the means of audio and visual tokens; where one is absent, that of the other in its place."""
    audio, visual = _mean(tokens.audio), _mean(tokens.visual)
    present = [x for x in (audio, visual) if x is not None]
    return torch.cat([present[0], present[-1]], dim=1)


def _check(x: Tensor, size: tuple[int, ...], name: str, settings: str) -> None:
    if tuple(x.shape[1:]) != size:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; the model's ({settings}) make it (B, {size})")
