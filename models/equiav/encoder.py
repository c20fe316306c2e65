"""EquiAV's encoder: a tower for each modality, and nothing joint."""

from __future__ import annotations

from torch import Tensor, nn

from models.cav_mae.encoder import ModalityEncoder
from models.equiav.config import EquiAvModelConfig
from models.layers.patches import patchify_audio, patchify_visual


class EquiAvEncoder(nn.Module):
    """Two towers of plain blocks (arXiv 2403.09502), each with its last norm.

    The published spectrogram has three equal channels, so that a picture's patch embedding fits it: that is one channel
    seen by the sum of the weights, as here.

    Args:
        config: Sizes of model and input.
    """

    def __init__(self, config: EquiAvModelConfig) -> None:
        super().__init__()
        arch = config.architecture
        self.config = config
        self.audio = ModalityEncoder(config, config.patch_size**2, config.audio_grid)
        self.visual = ModalityEncoder(config, 3 * config.patch_size**2, config.visual_grid)
        self.norm_audio = nn.LayerNorm(arch.embed_dim, eps=config.layer_norm_eps)
        self.norm_visual = nn.LayerNorm(arch.embed_dim, eps=config.layer_norm_eps)

    def audio_tokens(self, fbank: Tensor) -> Tensor:
        """(B, T, F) normalised log-mel -> (B, La, D) before the last norm.

        Raises:
            ValueError: The input has another size than the config says.
        """
        self._check(fbank, (self.config.audio_length, self.config.num_mel_bins), "audio_length, num_mel_bins")
        return self.audio(patchify_audio(fbank, self.config.patch_size))

    def visual_tokens(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, Lv, D) before the last norm.

        Raises:
            ValueError: The input has another size than the config says.
        """
        self._check(frames, (3, self.config.image_size, self.config.image_size), "3, image_size, image_size")
        return self.visual(patchify_visual(frames, self.config.patch_size))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {"audio.modality_embed", "visual.modality_embed"}

    @staticmethod
    def _check(x: Tensor, size: tuple[int, ...], settings: str) -> None:
        if tuple(x.shape[1:]) != size:
            raise ValueError(f"got {tuple(x.shape)}; the model's ({settings}) make it (B, {size})")
