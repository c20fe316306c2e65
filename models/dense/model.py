"""The dense grounding model: an encoder, and the factor that makes logits of its similarities."""

from __future__ import annotations

from torch import Tensor, nn

from models.dense.config import DenseModelConfig, ScaleConfig
from models.dense.encoder import DenseEncoder, DenseTokens
from models.dense.scale import Calibration, Temperature


class DenseModel(nn.Module):
    """What is trained.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: DenseModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = DenseEncoder(config)
        self.scale = build_scale(config.scale)

    def heat(self, tokens: DenseTokens) -> Tensor:
        """(B, P, T) `DenseEncoder.volume` as logits (before their mean is taken off), so that runs can be compared."""
        return self.encoder.volume(tokens) * self.scale.factor()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


def build_scale(config: ScaleConfig) -> Calibration | Temperature:
    """The factor of a config, at its start."""
    if config.kind == "temperature":
        return Temperature(config.initial, config.low, config.high)
    return Calibration(config.initial)
