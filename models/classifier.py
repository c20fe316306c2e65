"""The encoders with a classification head, for whatever modalities are present."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.encoders import Encoder
from models.layers.blocks import init_weights
from models.registry import build_encoder


class AudioVisualClassifier(nn.Module):
    """Encoder, mean pooling, LayerNorm and a linear layer (CAV-MAE, section 4.2).

    Args:
        config: The encoder's.
        num_classes: Width of the logits.
        encoder: A pretrained encoder to keep; a randomly initialised one if None.
        pool_separate: Whether, with both modalities present, the streams of each alone are pooled together
            with the joint one (the paper finds both alike).
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        encoder: Encoder[Any] | None = None,
        *,
        pool_separate: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        self.config = config
        self.pool_separate = pool_separate
        self.encoder = encoder or build_encoder(config)
        self.norm = nn.LayerNorm(self.encoder.feature_dim, eps=config.layer_norm_eps)
        self.head = nn.Linear(self.encoder.feature_dim, num_classes)
        self.head.apply(init_weights)

    def forward(
        self, fbank: Tensor | None = None, frames: Tensor | None = None, *, trained_on_both: bool = True
    ) -> Tensor:
        """Logits from the modalities present.

        Args:
            fbank: (B, T, F) normalised log-mel, or None.
            frames: (B, N, 3, H, W) normalised pictures, or None.
            trained_on_both: Whether a modality that is absent was there in training.

        Returns:
            (B, num_classes) logits.
        """
        features = self.features(fbank, frames, trained_on_both=trained_on_both)
        # In float32, whatever the encoder computes in: in bfloat16 different scores become equal.
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    def features(
        self, fbank: Tensor | None = None, frames: Tensor | None = None, *, trained_on_both: bool = True
    ) -> Tensor:
        """What the head sees: (B, D) float32, pooled and normalised; arguments as of `forward`."""
        pooled = self.encoder.features(
            fbank, frames, trained_on_both=trained_on_both, pool_separate=self.pool_separate
        )
        with torch.autocast(pooled.device.type, enabled=False):
            return self.norm(pooled)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
