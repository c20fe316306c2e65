"""MAViL's masked autoencoder: masked views of a clip, encoded, fused and decoded."""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

from models.layers.masking import Mask, mask_from_noise, structured_noise
from models.layers.patches import unpatchify_audio, unpatchify_film
from models.mavil.config import MavilModelConfig
from models.mavil.decoder import Decoders
from models.mavil.encoder import MavilEncoder, MavilTokens


@dataclass(frozen=True)
class MavilView:
    """One masked pass of a clip.

    Attributes:
        audio: The mask of the audio tokens.
        visual: The mask of the visual tokens.
        towers: The towers' outputs over kept tokens.
        decoded_audio: (B, La, d) what the last layers of the audio decoder see; None where nothing is decoded.
        decoded_visual: (B, Lv, d) likewise.
    """

    audio: Mask
    visual: Mask
    towers: MavilTokens
    decoded_audio: Tensor | None = None
    decoded_visual: Tensor | None = None


class MavilMAE(nn.Module):
    """MAViL. Losses are the caller's, on what ``forward`` returns.

    Args:
        config: Sizes of model and input, and the masks.
    """

    def __init__(self, config: MavilModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MavilEncoder(config)
        self.decoder = Decoders(config)

    def forward(
        self, fbank: Tensor, frames: Tensor, noise_audio: Tensor, noise_visual: Tensor, *, decode: bool = True
    ) -> MavilView:
        """Masks a clip, passes what is kept through the towers, and on request fuses and decodes it.

        Args:
            fbank: (B, T, F) normalised log-mel.
            frames: (B, N, 3, H, W) normalised pictures.
            noise_audio: (B, La) uniform in [0, 1), from which the audio mask is made.
            noise_visual: (B, Lv) likewise for the visual mask.
            decode: Whether fusion blocks and decoders are needed.
        """
        audio, visual = self.mask_audio(noise_audio), self.mask_visual(noise_visual)
        towers = self.encoder.towers(fbank, frames, audio.ids_keep, visual.ids_keep)
        if not decode:
            return MavilView(audio, visual, towers)
        fused = self.encoder.fusion(towers)
        decoded_audio = self.decoder.audio(fused.audio, audio.ids_keep)
        decoded_visual = self.decoder.visual(fused.visual, visual.ids_keep)
        return MavilView(audio, visual, towers, decoded_audio, decoded_visual)

    def mask_audio(self, noise: Tensor) -> Mask:
        """The mask of audio tokens from (B, La) noise in [0, 1)."""
        config, (moments, bins) = self.config, self.config.audio_cells
        by_frequency = rearrange(noise, "b (t f) -> b (f t)", t=moments)
        by_frequency = structured_noise(
            by_frequency, (bins, moments), config.mask.audio_ratio, config.mask.audio_strategy
        )
        return mask_from_noise(
            rearrange(by_frequency, "b (f t) -> b (t f)", t=moments), config.num_kept_audio
        )

    def mask_visual(self, noise: Tensor) -> Mask:
        """The mask of visual tokens from (B, Lv) noise in [0, 1)."""
        return mask_from_noise(noise, self.config.num_kept_visual)

    def unpatchify_audio(self, patches: Tensor) -> Tensor:
        """(B, La, P*P) -> (B, T, F)."""
        return unpatchify_audio(patches, self.config.audio_cells, self.config.patch_size).mT

    def unpatchify_visual(self, patches: Tensor) -> Tensor:
        """(B, Lv, tubelet*P*P*3) -> (B, N, 3, H, W)."""
        config = self.config
        return unpatchify_film(patches, config.visual_cells, config.tubelet, config.patch_size)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        own = {"decoder.audio.mask_token", "decoder.visual.mask_token"}
        return own | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
