"""What is kept of a dense grounding model: two towers and two heads that end in a common space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.dense.config import DenseModelConfig
from models.dense.heads import AudioHead, VisualHead
from models.dense.similarity import clip_volumes, split_heads
from models.dense.towers import build_audio_tower, build_visual_tower
from models.dense.workload import fake_frames, fake_sound
from models.encoders import Embeddings, Encoder
from models.measured import clip_cost
from models.towers import Sound, Tokens, Tower
from models.towers.conv import STRIDE

Input = TypeVar("Input")


@dataclass(frozen=True)
class DenseTokens:
    """What similarities are made of: the tokens of a batch of clips, by head.

    Attributes:
        audio: (B, K, T, C).
        visual: (B, K, P, C), all places of all frames.
        real: (B, T) float32, 1 for moments of the clip, 0 for padding.
        sound: (B, T) float32, 1 where there is sound, 0 for silence and padding.
        grid: H and W of a frame.
    """

    audio: Tensor
    visual: Tensor
    real: Tensor
    sound: Tensor
    grid: tuple[int, int]


class DenseEncoder(Encoder[DenseModelConfig]):
    """Sound and pictures as tokens of a common space.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: DenseModelConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_tower = build_audio_tower(config)
        self.visual_tower = build_visual_tower(config)
        self.audio_head = AudioHead(self.audio_tower.width, config.embed_dim, config.audio_head)
        self.visual_head = VisualHead(self.visual_tower.width, config.embed_dim, config.visual_head)
        for tower, setting in ((self.audio_tower, config.audio), (self.visual_tower, config.visual)):
            if setting.frozen:
                tower.requires_grad_(False)

    def hear(self, sound: Sound, frozen: bool = False) -> Tokens:
        """Tokens of the common width for each moment; a frozen tower gets no gradient."""
        return self.audio_head(_run(self.audio_tower, sound, frozen))

    def see(self, frames: Tensor, frozen: bool = False) -> Tokens:
        """Tokens of the common width for each place of (B, N, 3, H, W) pictures; likewise."""
        return self.visual_head(_run(self.visual_tower, frames, frozen))

    def forward(
        self, sound: Sound, frames: Tensor, frozen_audio: bool = False, frozen_visual: bool = False
    ) -> DenseTokens:
        """The tokens of a batch of clips.

        Args:
            sound: Of B clips, with waveforms.
            frames: (B, N, 3, H, W) normalised pictures.
            frozen_audio: Whether the tower gets no gradient.
            frozen_visual: Likewise.
        """
        audio, visual = self.hear(sound, frozen_audio), self.see(frames, frozen_visual)
        similarity, heads = self.config.similarity, self.config.num_heads
        real = audio.mask.float()
        return DenseTokens(
            similarity.prepare(split_heads(audio.values, heads)),
            similarity.prepare(split_heads(visual.values, heads)),
            real,
            real * sound_mask(sound, audio.values.shape[1], self.config.silence_db),
            (visual.grid[-2], visual.grid[-1]),
        )

    def weight(self, tokens: DenseTokens) -> Tensor:
        """(B, T) how much each moment counts in a similarity."""
        return tokens.sound if self.config.similarity.mask_silence else tokens.real

    def volume(self, tokens: DenseTokens) -> Tensor:
        """(B, P, T) similarity of every place with every moment of its own clip, heads joined, 0 in silence."""
        volume = clip_volumes(tokens.audio, tokens.visual) * tokens.sound[:, None, None]
        return self.config.similarity.join_heads(volume)

    def sound_tokens(self, fbank: Tensor, columns: Tensor | None = None) -> Tokens:
        """See `Encoder.sound_tokens`: those of the common space, a moment each."""
        frames = None if columns is None else (columns * STRIDE).clamp_max(fbank.shape[1])
        found = self.hear(Sound(fbank=fbank, num_frames=frames))
        return Tokens(found.values, found.mask, (1, found.values.shape[1]), found.cls)

    def frame_tokens(self, frames: Tensor) -> Tokens:
        """See `Encoder.frame_tokens`: those of the common space, a place each."""
        return self.see(frames)

    @property
    def feature_dim(self) -> int:
        """See `Encoder.feature_dim`."""
        return self.config.embed_dim

    @property
    def num_layers(self) -> int:
        """See `Encoder.num_layers`: a tower counts as one, wherever it comes from."""
        return 1

    def depth_of(self, name: str) -> int:
        """See `Encoder.depth_of`."""
        return 1 if name.partition(".")[0] in ("audio_tower", "visual_tower") else 2

    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        """See `Encoder.embed`: the means over tokens. A tower that hears waveforms can't do it."""
        audio = None if fbank is None else self.hear(_spectrogram(fbank, audio_columns)).mean()
        visual = None if frames is None else self.see(frames).mean()
        return Embeddings(audio, visual)

    def features(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        *,
        trained_on_both: bool = True,
        pool_separate: bool = False,
    ) -> Tensor:
        """See `Encoder.features`: the mean of the modalities present, which share a space."""
        found = self.embed(fbank, frames)
        present = [x for x in (found.audio, found.visual) if x is not None]
        return torch.stack(present).mean(0)

    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        """See `Encoder.feature_flops`; attention's products are counted as well."""
        return self._feature_cost(audio, visual, bf16=False)[0]

    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        """See `Encoder.feature_activations`."""
        return self._feature_cost(audio, visual, bf16)[1]

    def _feature_cost(self, audio: bool, visual: bool, bf16: bool) -> tuple[int, int]:
        def inputs(clips: int) -> tuple[Tensor | None, Tensor | None]:
            fbank = fake_sound(self.config, clips, 1).fbank if audio else None
            return fbank, fake_frames(self.config, clips) if visual else None

        return clip_cost(_Features(self), inputs, bf16)

    def no_weight_decay(self) -> set[str]:
        """See `Encoder.no_weight_decay`."""
        return set()


class _Features(nn.Module):
    """`DenseEncoder.features` as a module's call."""

    def __init__(self, encoder: DenseEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, fbank: Tensor | None, frames: Tensor | None) -> Tensor:
        return self.encoder.features(fbank, frames)


def _run(tower: Tower[Input], inputs: Input, frozen: bool) -> Tokens:
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        return tower(inputs)


def _spectrogram(fbank: Tensor, columns: int | None) -> Sound:
    frames = fbank.shape[1] if columns is None else min(fbank.shape[1], columns * STRIDE)
    return Sound(fbank=fbank, num_frames=torch.full((len(fbank),), frames, device=fbank.device))


@torch.no_grad()
def sound_mask(sound: Sound, num_tokens: int, silence_db: float) -> Tensor:
    """(B, T) float32, 1 for tokens in whose stretch of the waveform there is sound.

    Token t of T hears [t, t + 1)·S / T of the S samples; it is silent if their root mean square is at most
    ``silence_db`` below full scale.
    """
    if sound.waveform is None:
        raise ValueError("where there is silence is read off waveforms, and a spectrogram alone was given")
    wave = sound.waveform.float() / (1.0 if sound.waveform.is_floating_point() else 32768.0)
    power = F.adaptive_avg_pool1d(rearrange(wave.square(), "b s -> b 1 s"), num_tokens).squeeze(1)
    return (power > 10 ** (silence_db / 10)).float()
