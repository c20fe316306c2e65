"""The contrastive audio-visual masked autoencoder (CAV-MAE): masks, encoder, decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from models.cav_mae.config import CavMaeModelConfig
from models.cav_mae.decoder import AudioVisualDecoder
from models.cav_mae.encoder import AudioVisualEncoder, pool
from models.encoders import Encoder
from models.layers.blocks import Streams
from models.layers.masking import Masker
from models.layers.patches import patchify_audio, patchify_visual, unpatchify_audio, unpatchify_visual

C = TypeVar("C", bound=CavMaeModelConfig)
E = TypeVar("E", bound=Encoder[Any])


@dataclass(frozen=True)
class MAEOutput:
    """What a pretraining pass computes; parts not asked for are None.

    Attributes:
        mask_audio: (B, La) float32, 1 = removed.
        mask_visual: (B, Lv) float32, 1 = removed.
        latents: The encoder's streams over kept tokens.
        pred_audio: (B, La, P*P) predicted audio patches.
        pred_visual: (B, Lv, P*P*3) predicted visual patches.
        embed_audio: (B, D) mean of the audio stream, not normalised, for contrast.
        embed_visual: (B, D) mean of the visual stream.
    """

    mask_audio: Tensor
    mask_visual: Tensor
    latents: Streams
    pred_audio: Tensor | None = None
    pred_visual: Tensor | None = None
    embed_audio: Tensor | None = None
    embed_visual: Tensor | None = None


class JointAutoencoder(nn.Module, Generic[C, E]):
    """An encoder and a decoder over the patches of both modalities, and what is the same whatever the encoder.

    Attributes:
        config: Sizes of model and input, and the masks.
        encoder: From patches to streams.
        decoder: From the joint stream to every patch.
    """

    config: C
    encoder: E
    decoder: AudioVisualDecoder

    def patchify_audio(self, fbank: Tensor) -> Tensor:
        """(B, T, F) -> (B, La, P*P), the targets of ``pred_audio``."""
        return patchify_audio(fbank, self.config.patch_size)

    def patchify_visual(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, Lv, P*P*3), the targets of ``pred_visual``."""
        return patchify_visual(frames, self.config.patch_size)

    def unpatchify_audio(self, patches: Tensor) -> Tensor:
        """(B, La, P*P) -> (B, T, F)."""
        return unpatchify_audio(patches, self.config.audio_grid, self.config.patch_size)

    def unpatchify_visual(self, patches: Tensor) -> Tensor:
        """(B, Lv, P*P*3) -> (B, 3, H, W)."""
        return unpatchify_visual(patches, self.config.visual_grid, self.config.patch_size)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        parts = (("encoder", self.encoder), ("decoder", self.decoder))
        return {f"{prefix}.{name}" for prefix, part in parts for name in part.no_weight_decay()}


class AudioVisualMAE(JointAutoencoder[CavMaeModelConfig, AudioVisualEncoder]):
    """CAV-MAE. Losses are the caller's: `models.losses` on what ``forward`` returns.

    Args:
        config: Sizes of model and input, and the masks.
    """

    def __init__(self, config: CavMaeModelConfig) -> None:
        super().__init__()
        self.config = config
        self.masker = Masker(config)
        self.encoder = AudioVisualEncoder(config)
        self.decoder = AudioVisualDecoder(config)

    def forward(
        self,
        fbank: Tensor,
        frames: Tensor,
        noise_audio: Tensor,
        noise_visual: Tensor,
        *,
        reconstruct: bool = True,
        contrast: bool = True,
        ratio: float | None = None,
    ) -> MAEOutput:
        """Masks, encodes, decodes.

        Args:
            fbank: (B, T, F) normalised log-mel.
            frames: (B, 3, H, W) normalised pictures.
            noise_audio: (B, La) uniform in [0, 1), from which the audio mask is made.
            noise_visual: (B, Lv) likewise for the visual mask.
            reconstruct: Whether the joint stream and the decoder's predictions are needed.
            contrast: Whether the single-modality streams and their means are needed.
            ratio: Share of the tokens of either modality that is removed; None is the config's.
        """
        audio, visual = self.masker.audio(noise_audio, ratio), self.masker.visual(noise_visual, ratio)
        latents = self.encoder(
            fbank, frames, audio.ids_keep, visual.ids_keep, joint=reconstruct, separate=contrast
        )
        pred_audio = pred_visual = None
        if latents.joint is not None:
            pred_audio, pred_visual = self.decoder(latents.joint, audio.ids_keep, visual.ids_keep)
        return MAEOutput(
            mask_audio=audio.mask,
            mask_visual=visual.mask,
            latents=latents,
            pred_audio=pred_audio,
            pred_visual=pred_visual,
            embed_audio=pool(latents.audio),
            embed_visual=pool(latents.visual),
        )
