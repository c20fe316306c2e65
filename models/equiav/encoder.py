"""EquiAV's encoder: a tower for each modality, and nothing joint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cav_mae.encoder import ModalityEncoder, check_input, first_columns, pool, single_frame, whole
from models.encoders import Embeddings, Encoder
from models.equiav.config import EquiAvModelConfig
from models.equiav.workload import tower_bytes, tower_flops
from models.layers.patches import patchify_audio, patchify_visual
from models.towers.base import Tokens


class EquiAvEncoder(Encoder[EquiAvModelConfig]):
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
        sizes = (arch.embed_dim, config.layer_norm_eps)
        self.norm = nn.ModuleDict(
            {name: nn.LayerNorm(sizes[0], eps=sizes[1]) for name in ("audio", "visual")}
        )

    def audio_tokens(self, fbank: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """(B, T, F) normalised log-mel -> (B, La, D) before the last norm, or (B, K, D) of the patches to look at.

        Raises:
            ValueError: The input has another size than the config says.
        """
        config = self.config
        size = (config.audio_length, config.num_mel_bins)
        check_input(fbank, size, "fbank", "audio_length, num_mel_bins")
        return self.audio(patchify_audio(fbank, config.patch_size), ids_keep)

    def visual_tokens(self, frames: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures -> (B, Lv, D) before the last norm.

        Raises:
            ValueError: The input has another size than the config says.
        """
        size = (3, self.config.image_size, self.config.image_size)
        check_input(frames, size, "frames", "3, image_size, image_size")
        return self.visual(patchify_visual(frames, self.config.patch_size))

    def forward(
        self, fbank: Tensor | None, frames: Tensor | None, keep_audio: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The tokens of the modalities present, after the last norms.

        Args:
            fbank: (B, T, F) normalised log-mel, or None.
            frames: (B, 3, H, W) normalised pictures, or None.
            keep_audio: (B, K) ids of the audio patches to look at; None for all.

        Raises:
            ValueError: No modality is present, or an input has another size than the config says.
        """
        if fbank is None and frames is None:
            raise ValueError("the encoder needs fbank, frames or both, and got neither")
        audio = None if fbank is None else self.norm["audio"](self.audio_tokens(fbank, keep_audio))
        visual = None if frames is None else self.norm["visual"](self.visual_tokens(frames))
        return audio, visual

    @property
    def feature_dim(self) -> int:
        """See `Encoder.feature_dim`: both modalities side by side."""
        return 2 * self.config.architecture.embed_dim

    @property
    def num_layers(self) -> int:
        """See `Encoder.num_layers`."""
        return self.config.architecture.modality_depth

    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        """See `Encoder.embed`: the mean of each modality's tokens, and both means side by side."""
        keep = None if fbank is None else first_columns(self.config.audio_grid, audio_columns, fbank)
        audio, visual = (pool(x) for x in self(fbank, single_frame(frames), keep))
        joint = None if audio is None or visual is None else torch.cat([audio, visual], dim=1)
        return Embeddings(audio, visual, joint)

    def features(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        *,
        trained_on_both: bool = True,
        pool_separate: bool = False,
    ) -> Tensor:
        """See `Encoder.features`: the means of both modalities side by side.

        Nothing is joint, so neither keyword changes anything. An absent modality's half repeats what is there.
        """
        audio, visual = (pool(x) for x in self(fbank, single_frame(frames)))
        present = [x for x in (audio, visual) if x is not None]
        return torch.cat([present[0], present[-1]], dim=1)

    def sound_tokens(self, fbank: Tensor, columns: Tensor | None = None) -> Tokens:
        """See `Encoder.sound_tokens`."""
        found, _ = self(fbank, None)
        assert found is not None
        return whole(found, self.config.audio_grid)

    def frame_tokens(self, frames: Tensor) -> Tokens:
        """See `Encoder.frame_tokens`."""
        _, found = self(None, single_frame(frames))
        assert found is not None
        return whole(found, (1, *self.config.visual_grid))

    def depth_of(self, name: str) -> int:
        """See `Encoder.depth_of`."""
        words = name.split(".")
        if "blocks" in words:
            return 1 + int(words[2])
        return 0 if words[0] in ("audio", "visual") else self.num_layers + 1

    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        """See `Encoder.feature_flops`."""
        return tower_flops(self.config, audio, visual)

    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        """See `Encoder.feature_activations`."""
        return tower_bytes(self.config, audio, visual, bf16)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {"audio.modality_embed", "visual.modality_embed"}
