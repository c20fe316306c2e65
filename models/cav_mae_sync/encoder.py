"""The encoder of CAV-MAE Sync: towers with a global token and registers, then joint blocks without these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from models.cav_mae.encoder import ModalityEncoder, check_input, first_columns, pool, single_frame
from models.cav_mae_sync.config import CavMaeSyncModelConfig
from models.cav_mae_sync.segments import covering_starts, cut_segments, num_covering
from models.cav_mae_sync.workload import Pass, pass_bytes, pass_flops
from models.encoders import Embeddings, Encoder
from models.layers.blocks import Block, JointBlock, StreamNorm, Streams, init_weights, run_blocks
from models.layers.patches import patchify_audio, patchify_visual


@dataclass(frozen=True)
class SyncStreams:
    """What the encoder makes of a batch; parts not asked for, or of absent modalities, are None.

    Attributes:
        joint: (B, Ka + Kv, D) patches of the modalities present together, audio first.
        audio: (B, Ka, D) audio patches beside the audio global token only.
        visual: (B, Kv, D) visual patches likewise.
        global_audio: (B, D) the audio global token, which is contrasted and retrieved with.
        global_visual: (B, D) the visual one.
    """

    joint: Tensor | None = None
    audio: Tensor | None = None
    visual: Tensor | None = None
    global_audio: Tensor | None = None
    global_visual: Tensor | None = None


@dataclass(frozen=True)
class GlobalAttention:
    """What a look at every patch says about them.

    Attributes:
        audio: (B, La) attention of each audio patch to the global token.
        visual: (B, Lv) likewise.
        global_audio: (B, D) the audio global token.
        global_visual: (B, D) the visual one.
    """

    audio: Tensor
    visual: Tensor
    global_audio: Tensor
    global_visual: Tensor


class GlobalTokenTower(ModalityEncoder):
    """A modality's blocks over [global token, kept patches, registers].

    Global token and registers have neither position nor modality embedding.

    Args:
        config: The model's.
        patch_dim: Values in a patch.
        grid: Rows and columns of patches.
    """

    def __init__(self, config: CavMaeSyncModelConfig, patch_dim: int, grid: tuple[int, int]) -> None:
        super().__init__(config, patch_dim, grid)
        self.global_token = nn.Parameter(torch.empty(config.architecture.embed_dim))
        nn.init.normal_(self.global_token, std=0.02)

    def with_registers(self, patches: Tensor, ids_keep: Tensor | None, registers: Tensor | None) -> Tensor:
        """The global token, then the kept patches; registers see and are seen, and are dropped at the end.

        Args:
            patches: (B, L, P).
            ids_keep: (B, K), or None for all in order.
            registers: (R, D), or None for none.

        Returns:
            (B, 1 + K, D).
        """
        x = self.embed_patches(patches, ids_keep)
        parts = [self.global_token.to(x.dtype).expand(x.shape[0], 1, -1), x]
        if registers is not None:
            parts.append(registers.to(x.dtype).expand(x.shape[0], -1, -1))
        return run_blocks(self.blocks, torch.cat(parts, dim=1), self.recompute)[:, : 1 + x.shape[1]]


class CavMaeSyncEncoder(Encoder[CavMaeSyncModelConfig]):
    """Encoder of CAV-MAE Sync (arXiv 2505.01237), equal to the published code.

    It sees a picture and a stretch of sound at a time. The joint blocks see the patches of both together, without
    global tokens, and each modality's global token and patches alone. Unlike in the published code the streams of
    one modality pass all of several joint blocks, not only the last.

    Args:
        config: Sizes of model and input.
    """

    def __init__(self, config: CavMaeSyncModelConfig) -> None:
        super().__init__()
        arch = config.architecture
        self.config = config
        self.audio = GlobalTokenTower(config, config.patch_size**2, config.audio_grid)
        self.visual = GlobalTokenTower(config, config.patch_size**2 * 3, config.visual_grid)
        self.registers: Tensor | None = None
        if config.num_registers:
            # Audio's, then visual's. From a standard normal distribution, as published.
            self.registers = nn.Parameter(torch.randn(2, config.num_registers, arch.embed_dim))
        sizes = (arch.embed_dim, arch.num_heads, config.mlp_ratio, config.layer_norm_eps)
        self.joint_blocks = nn.ModuleList(JointBlock(*sizes) for _ in range(arch.joint_depth))
        self.contrast_blocks_audio = nn.ModuleList(Block(*sizes) for _ in range(config.contrast_depth))
        self.contrast_blocks_visual = nn.ModuleList(Block(*sizes) for _ in range(config.contrast_depth))
        self.norm = StreamNorm(arch.embed_dim, config.layer_norm_eps)
        for blocks in (self.joint_blocks, self.contrast_blocks_audio, self.contrast_blocks_visual):
            blocks.apply(init_weights)

    def forward(
        self,
        fbank: Tensor | None = None,
        frames: Tensor | None = None,
        keep_audio: Tensor | None = None,
        keep_visual: Tensor | None = None,
        *,
        joint: bool = True,
        separate: bool = True,
        segments: int = 1,
    ) -> SyncStreams:
        """Encodes the modalities present.

        Args:
            fbank: (B·S, T, F) stretches of normalised log-mel, T = ``segment_length``, or None.
            frames: (B, 3, H, W) normalised pictures, or None.
            keep_audio: (B, Ka) ids of the audio patches to look at; None for all.
            keep_visual: (B, Kv) ids of the visual patches to look at; None for all.
            joint: Whether the stream of all patches together is needed.
            separate: Whether the streams of single modalities are needed.
            segments: S, stretches of each clip, one after the other and all beside its picture.

        Returns:
            Joint and audio streams with B·S rows, visual ones with B.

        Raises:
            ValueError: No modality is present, or an input has another size than the config says.
        """
        audio, visual = self.towers(fbank, frames, keep_audio, keep_visual)
        together = _together(audio, visual, segments) if joint else None
        streams = Streams(together, audio, visual) if separate else Streams(together)
        recompute = self.config.activation_checkpointing
        streams = run_blocks(self.joint_blocks, streams, recompute)
        contrasted = Streams(
            streams.joint,
            None
            if streams.audio is None
            else run_blocks(self.contrast_blocks_audio, streams.audio, recompute),
            None
            if streams.visual is None
            else run_blocks(self.contrast_blocks_visual, streams.visual, recompute),
        )
        normed = self.norm(contrasted)
        patches, tokens = normed.map(lambda x: x[:, 1:]), normed.map(lambda x: x[:, 0])
        return SyncStreams(normed.joint, patches.audio, patches.visual, tokens.audio, tokens.visual)

    def towers(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        keep_audio: Tensor | None = None,
        keep_visual: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, 1 + Ka, D) and (B, 1 + Kv, D), global tokens first; None for an absent modality."""
        config = self.config
        audio = visual = None
        registers_audio, registers_visual = (None, None) if self.registers is None else self.registers
        if fbank is not None:
            size = (config.segment_length, config.num_mel_bins)
            check_input(fbank, size, "fbank", "segment_length, num_mel_bins")
            patches = patchify_audio(fbank, config.patch_size)
            audio = self.audio.with_registers(patches, keep_audio, registers_audio)
        if frames is not None:
            size = (3, config.image_size, config.image_size)
            check_input(frames, size, "frames", "3, image_size, image_size")
            patches = patchify_visual(frames, config.patch_size)
            visual = self.visual.with_registers(patches, keep_visual, registers_visual)
        if audio is None and visual is None:
            raise ValueError("the encoder needs fbank, frames or both, and got neither")
        return audio, visual

    def global_attention(self, fbank: Tensor, frames: Tensor) -> GlobalAttention:
        """Attention of every patch to the global token in the last joint block, and the global tokens.

        ::

            attention[b, l] = mean over heads of softmax over keys(q_l . k / sqrt(d))[global token]

        Nothing is masked, and the contrast blocks are gone around, as in the teacher's pass of TG-DP.

        Args:
            fbank: (B, T, F).
            frames: (B, 3, H, W).

        Raises:
            ValueError: The model has no joint block.
        """
        if not len(self.joint_blocks):
            raise ValueError(
                "joint_depth is 0: there is no joint block whose attention could rank the patches"
            )
        *first, final = self.joint_blocks
        last = cast(JointBlock, final)
        streams = run_blocks(first, Streams(None, *self.towers(fbank, frames)), recompute=False)
        attention = last.norm1(streams).map(last.attn.to_first)
        tokens = self.norm(last(streams))
        assert attention.audio is not None
        assert attention.visual is not None
        assert tokens.audio is not None
        assert tokens.visual is not None
        return GlobalAttention(
            attention.audio[:, 1:], attention.visual[:, 1:], tokens.audio[:, 0], tokens.visual[:, 0]
        )

    @property
    def feature_dim(self) -> int:
        """See `Encoder.feature_dim`."""
        return self.config.architecture.embed_dim

    @property
    def num_layers(self) -> int:
        """See `Encoder.num_layers`."""
        arch = self.config.architecture
        return arch.modality_depth + arch.joint_depth + self.config.contrast_depth

    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        """See `Encoder.embed`: global tokens, and the mean of the joint stream's patches.

        The whole sound is covered by as few evenly spaced stretches as do, the picture beside each; what they give is
        averaged.
        """
        both = fbank is not None and frames is not None
        streams, segments = self._whole_clip(fbank, frames, audio_columns, joint=both, separate=True)
        return Embeddings(
            _mean_segments(streams.global_audio, segments),
            None if streams.global_visual is None else streams.global_visual.float(),
            _mean_segments(pool(streams.joint), segments),
        )

    def features(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        *,
        trained_on_both: bool = True,
        pool_separate: bool = False,
    ) -> Tensor:
        """See `Encoder.features`, of the whole clip as in ``embed``.

        With both modalities the joint stream is pooled (with ``pool_separate`` the global tokens count as much). With
        one, a model trained on both averages the pooled joint stream (of that modality's patches) and the global
        token; a model trained on this modality only uses the latter.
        """
        both = fbank is not None and frames is not None
        streams, segments = self._whole_clip(
            fbank, frames, None, joint=both or trained_on_both, separate=pool_separate or not both
        )
        parts = [_mean_segments(pool(streams.joint), segments)]
        parts.append(_mean_segments(streams.global_audio, segments))
        parts.append(streams.global_visual)
        return torch.stack([x.float() for x in parts if x is not None]).mean(dim=0)

    def _whole_clip(
        self, fbank: Tensor | None, frames: Tensor | None, columns: int | None, *, joint: bool, separate: bool
    ) -> tuple[SyncStreams, int]:
        """The streams of all stretches of a clip, and how many these are."""
        config, keep, segments = self.config, None, 1
        if fbank is not None:
            check_input(
                fbank, (config.audio_length, config.num_mel_bins), "fbank", "audio_length, num_mel_bins"
            )
            length = config.audio_length if columns is None else columns * config.patch_size
            starts = covering_starts(length, config.segment_length, fbank.device)
            segments = len(starts)
            fbank = cut_segments(fbank, starts.expand(fbank.shape[0], -1), config.segment_length).flatten(
                0, 1
            )
            keep = first_columns(config.audio_grid, columns, fbank)
        streams = self(fbank, single_frame(frames), keep, joint=joint, separate=separate, segments=segments)
        return streams, segments

    def depth_of(self, name: str) -> int:
        """See `Encoder.depth_of`."""
        arch = self.config.architecture
        words = name.split(".")
        if "blocks" in words:
            return 1 + int(words[2])
        if words[0] == "joint_blocks":
            return 1 + arch.modality_depth + int(words[1])
        if words[0].startswith("contrast_blocks"):
            return 1 + arch.modality_depth + arch.joint_depth + int(words[1])
        return 0 if words[0] in ("audio", "visual", "registers") else self.num_layers + 1

    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        """See `Encoder.feature_flops`."""
        return pass_flops(self.config, self._feature_pass(audio, visual, pool_separate))

    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        """See `Encoder.feature_activations`."""
        return pass_bytes(self.config, self._feature_pass(audio, visual, pool_separate), bf16)

    def _feature_pass(self, audio: bool, visual: bool, pool_separate: bool) -> Pass:
        config, both = self.config, audio and visual
        segments = num_covering(config.audio_length, config.segment_length) if audio else 1
        tokens = (config.num_audio_tokens * audio, config.num_visual_tokens * visual)
        return Pass(*tokens, joint=both, separate=pool_separate or not both, segments=segments)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        tokens = {f"{m}.{name}" for m in ("audio", "visual") for name in ("modality_embed", "global_token")}
        return tokens | ({"registers"} if self.registers is not None else set())


def _together(audio: Tensor | None, visual: Tensor | None, segments: int) -> Tensor:
    """Patches of the towers present, without global tokens; a picture once beside each of its stretches."""
    if audio is None or visual is None:
        present = audio if audio is not None else visual
        assert present is not None
        return present[:, 1:]
    beside = visual[:, None, 1:].expand(-1, segments, -1, -1).flatten(0, 1)
    return torch.cat([audio[:, 1:], beside], dim=1)


def _mean_segments(x: Tensor | None, segments: int) -> Tensor | None:
    """(B·S, D) -> (B, D) float32."""
    return None if x is None else x.float().unflatten(0, (-1, segments)).mean(dim=1)
