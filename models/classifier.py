"""The encoders with a classification head, for whatever modalities are present."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.cav_mae.config import ModelConfig
from models.cav_mae.encoder import AudioVisualEncoder, init_weights


class AudioVisualClassifier(nn.Module):
    """Encoder, mean pooling, LayerNorm and a linear layer (CAV-MAE, section 4.2).

    Args:
        config: The encoder's.
        num_classes: Width of the logits.
        encoder: A pretrained encoder to keep; a freshly drawn one if None.
        pool_separate: Whether, with both modalities present, the streams of each alone are pooled together
            with the joint one (the paper finds both alike).
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        encoder: AudioVisualEncoder | None = None,
        *,
        pool_separate: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
        self.config = config
        self.pool_separate = pool_separate
        self.encoder = encoder or AudioVisualEncoder(config)
        self.norm = nn.LayerNorm(config.architecture.embed_dim)
        self.head = nn.Linear(config.architecture.embed_dim, num_classes)
        self.head.apply(init_weights)

    def forward(
        self, fbank: Tensor | None = None, frames: Tensor | None = None, *, trained_on_both: bool = True
    ) -> Tensor:
        """Logits from the modalities present.

        With both, the joint stream is pooled (with ``pool_separate`` all three). With one, a model trained on
        both averages the pooled joint stream (of that modality's tokens) and the pooled stream of the
        modality alone; a model trained on this modality only uses the latter.

        Args:
            fbank: (B, T, F) normalised log-mel, or None.
            frames: (B, 3, H, W) normalised pictures, or None.
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
        both = fbank is not None and frames is not None
        separate = self.pool_separate or not both
        streams = self.encoder(fbank, frames, joint=both or trained_on_both, separate=separate)
        present = [x for x in (streams.joint, streams.audio, streams.visual) if x is not None]
        pooled = torch.stack([x.float().mean(dim=1) for x in present]).mean(dim=0)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.norm(pooled)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
