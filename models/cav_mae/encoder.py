"""The audio-visual encoder: blocks of each modality, then joint blocks over whichever are present."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from models.cav_mae.config import CavMaeModelConfig
from models.cav_mae.workload import activation_bytes, encoder_flops
from models.encoders import Embeddings, Encoder
from models.layers.blocks import Block, JointBlock, StreamNorm, Streams, init_weights, run_blocks
from models.layers.masking import gather_tokens
from models.layers.patches import patchify_audio, patchify_visual
from models.layers.position import sincos_2d
from models.towers.base import Tokens


class TowerArchitecture(Protocol):
    """Sizes of a `ModalityEncoder`."""

    @property
    def embed_dim(self) -> int: ...  # noqa: D102

    @property
    def num_heads(self) -> int: ...  # noqa: D102

    @property
    def modality_depth(self) -> int: ...  # noqa: D102


class TowerConfig(Protocol):
    """What a `ModalityEncoder` reads of its family's config."""

    @property
    def architecture(self) -> TowerArchitecture: ...  # noqa: D102

    @property
    def mlp_ratio(self) -> float: ...  # noqa: D102

    @property
    def layer_norm_eps(self) -> float: ...  # noqa: D102

    @property
    def activation_checkpointing(self) -> bool: ...  # noqa: D102


class ModalityEncoder(nn.Module):
    """Patches of one modality -> tokens: linear embedding, positions, modality embedding, blocks.

    The positions are a buffer of the state, not a formula at load time: fine-tuned checkpoints may have
    trained them.

    Args:
        config: The model's.
        patch_dim: Values in a patch.
        grid: Rows and columns of patches.
    """

    pos_embed: Tensor

    def __init__(self, config: TowerConfig, patch_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        arch = config.architecture
        self.recompute = config.activation_checkpointing
        self.patch_embed = nn.Linear(patch_dim, arch.embed_dim)
        self.register_buffer("pos_embed", sincos_2d(arch.embed_dim, grid))
        self.modality_embed = nn.Parameter(torch.empty(arch.embed_dim))
        self.blocks = nn.ModuleList(
            Block(arch.embed_dim, arch.num_heads, config.mlp_ratio, config.layer_norm_eps)
            for _ in range(arch.modality_depth)
        )
        self.apply(init_weights)
        nn.init.normal_(self.modality_embed, std=0.02)

    def forward(self, patches: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Tokens of the kept patches, in the order of ``ids_keep``; only these are computed.

        Args:
            patches: (B, L, P).
            ids_keep: (B, K), or None for all in order.

        Returns:
            (B, K, D).
        """
        return run_blocks(self.blocks, self.embed_patches(patches, ids_keep), self.recompute)

    def embed_patches(self, patches: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """What the first block takes; arguments and shapes as of ``forward``."""
        if ids_keep is None:
            return self.patch_embed(patches) + (self.pos_embed + self.modality_embed)
        # Gathered without the part that has a gradient: the backward pass of a gather sorts.
        places = self.pos_embed[ids_keep] + self.modality_embed
        return self.patch_embed(gather_tokens(patches, ids_keep)) + places


class AudioVisualEncoder(Encoder[CavMaeModelConfig]):
    """Joint audio-visual encoder of CAV-MAE (arXiv 2210.07839, figure 1).

    Each modality has an embedding and blocks of its own. The joint blocks then see three streams, each with
    its own norms and none seeing another: all tokens together, audio alone, visual alone.

    Args:
        config: Sizes of model and input.
    """

    def __init__(self, config: CavMaeModelConfig) -> None:
        super().__init__()
        arch = config.architecture
        self.config = config
        self.audio = ModalityEncoder(config, config.patch_size**2, config.audio_grid)
        self.visual = ModalityEncoder(config, config.patch_size**2 * 3, config.visual_grid)
        self.joint_blocks = nn.ModuleList(
            JointBlock(arch.embed_dim, arch.num_heads, config.mlp_ratio, config.layer_norm_eps)
            for _ in range(arch.joint_depth)
        )
        self.norm = StreamNorm(arch.embed_dim, config.layer_norm_eps)
        self.joint_blocks.apply(init_weights)

    def forward(
        self,
        fbank: Tensor | None = None,
        frames: Tensor | None = None,
        keep_audio: Tensor | None = None,
        keep_visual: Tensor | None = None,
        *,
        joint: bool = True,
        separate: bool = True,
    ) -> Streams:
        """Encodes the modalities present.

        Args:
            fbank: (B, T, F) normalised log-mel, or None.
            frames: (B, 3, H, W) normalised pictures, or None.
            keep_audio: (B, Ka) ids of the audio tokens to look at; None for all.
            keep_visual: (B, Kv) ids of the visual tokens to look at; None for all.
            joint: Whether the stream of all tokens together is needed.
            separate: Whether the streams of single modalities are needed.

        Returns:
            The streams asked for, after the final norms; those of absent modalities are None.

        Raises:
            ValueError: No modality is present, or an input has another size than the config says.
        """
        audio = visual = None
        if fbank is not None:
            size = (self.config.audio_length, self.config.num_mel_bins)
            check_input(fbank, size, "fbank", "audio_length, num_mel_bins")
            audio = self.audio(patchify_audio(fbank, self.config.patch_size), keep_audio)
        if frames is not None:
            size = (3, self.config.image_size, self.config.image_size)
            check_input(frames, size, "frames", "3, image_size, image_size")
            visual = self.visual(patchify_visual(frames, self.config.patch_size), keep_visual)
        present = [x for x in (audio, visual) if x is not None]
        if not present:
            raise ValueError("the encoder needs fbank, frames or both, and got neither")
        together = torch.cat(present, dim=1) if joint else None
        streams = Streams(together, audio, visual) if separate else Streams(together)
        streams = run_blocks(self.joint_blocks, streams, self.config.activation_checkpointing)
        return self.norm(streams)

    @property
    def feature_dim(self) -> int:
        """See `Encoder.feature_dim`."""
        return self.config.architecture.embed_dim

    @property
    def num_layers(self) -> int:
        """See `Encoder.num_layers`."""
        return self.config.architecture.modality_depth + self.config.architecture.joint_depth

    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        """See `Encoder.embed`: the means of the three streams over their tokens."""
        keep_audio = None if fbank is None else first_columns(self.config.audio_grid, audio_columns, fbank)
        both = fbank is not None and frames is not None
        found = self(fbank, single_frame(frames), keep_audio, joint=both)
        return Embeddings(pool(found.audio), pool(found.visual), pool(found.joint))

    def features(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        *,
        trained_on_both: bool = True,
        pool_separate: bool = False,
    ) -> Tensor:
        """See `Encoder.features`.

        With both modalities the joint stream is pooled (with ``pool_separate`` all three). With one, a model
        trained on both averages the pooled joint stream (of that modality's tokens) and the pooled stream of the
        modality alone; a model trained on this modality only uses the latter.
        """
        both = fbank is not None and frames is not None
        separate = pool_separate or not both
        streams = self(fbank, single_frame(frames), joint=both or trained_on_both, separate=separate)
        present = [x for x in (streams.joint, streams.audio, streams.visual) if x is not None]
        return torch.stack([x.float().mean(dim=1) for x in present]).mean(dim=0)

    def sound_tokens(self, fbank: Tensor, columns: Tensor | None = None) -> Tokens:
        """See `Encoder.sound_tokens`: the stream of the sound alone."""
        found = self(fbank, joint=False).audio
        assert found is not None
        return whole(found, self.config.audio_grid)

    def frame_tokens(self, frames: Tensor) -> Tokens:
        """See `Encoder.frame_tokens`: the stream of the picture alone."""
        found = self(None, single_frame(frames), joint=False).visual
        assert found is not None
        return whole(found, (1, *self.config.visual_grid))

    def depth_of(self, name: str) -> int:
        """See `Encoder.depth_of`."""
        words = name.split(".")
        if "blocks" in words:
            return 1 + int(words[words.index("blocks") + 1])
        if "joint_blocks" in words:
            return 1 + self.config.architecture.modality_depth + int(words[words.index("joint_blocks") + 1])
        return 0 if words[0] in ("audio", "visual") else self.num_layers + 1

    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        """See `Encoder.feature_flops`."""
        audio_tokens, visual_tokens = (
            self.config.num_audio_tokens * audio,
            self.config.num_visual_tokens * visual,
        )
        return encoder_flops(self.config, audio_tokens, visual_tokens, 2 if pool_separate else 1)

    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        """See `Encoder.feature_activations`."""
        tokens = self.config.num_audio_tokens * audio + self.config.num_visual_tokens * visual
        return activation_bytes(self.config, tokens, 2 if pool_separate else 1, bf16, decode=False)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {"audio.modality_embed", "visual.modality_embed"}


def check_input(x: Tensor, size: tuple[int, ...], name: str, settings: str) -> None:
    """Raises ``ValueError``, naming the settings, unless ``x`` has shape (B, *size)."""
    if tuple(x.shape[1:]) != size:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; the model's ({settings}) make it (B, {size})")


def first_columns(grid: tuple[int, int], count: int | None, like: Tensor) -> Tensor | None:
    """(B, K) ids of the audio tokens in the first ``count`` columns of a grid, for a batch; None for all."""
    rows, columns = grid
    if count is None or count >= columns:
        return None
    ids = torch.arange(rows * columns, device=like.device).reshape(rows, columns)[:, :count]
    return ids.flatten().expand(len(like), -1)


def pool(x: Tensor | None) -> Tensor | None:
    """The mean over tokens in float32: (B, L, D) -> (B, D)."""
    return None if x is None else x.float().mean(dim=1)


def whole(x: Tensor, grid: tuple[int, ...]) -> Tokens:
    """(B, L, D) of which nothing is padding, as tokens of a grid."""
    return Tokens(x, x.new_ones(x.shape[:2]).bool(), grid)


def single_frame(frames: Tensor | None) -> Tensor | None:
    """(B, 1, 3, H, W) or (B, 3, H, W) -> (B, 3, H, W)."""
    return frames if frames is None or frames.ndim == 4 else frames.squeeze(1)
