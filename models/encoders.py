"""What is kept of pretraining, whatever the family: an encoder that embeds clips and feeds a classifier's head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.towers.base import Tokens

C = TypeVar("C", bound=ModelConfig)


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a batch of clips, not normalised; None for what is absent.

    Attributes:
        audio: (B, D) of the sound alone.
        visual: (B, D) of the frames alone.
        joint: (B, D') of both together, where both are present and the family joins them.
    """

    audio: Tensor | None = None
    visual: Tensor | None = None
    joint: Tensor | None = None


class Encoder(nn.Module, ABC, Generic[C]):
    """The encoders of a family, nothing masked.

    Attributes:
        config: Sizes of model and input.
    """

    config: C
    #: Epsilon of the LayerNorm between `features` and a classifier's head.

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Width of `features`."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Layers that a token passes, its embedding not counted; see `depth_of`."""

    @abstractmethod
    def embed(
        self, fbank: Tensor | None, frames: Tensor | None, audio_columns: int | None = None
    ) -> Embeddings:
        """The vectors that retrieval and probes measure.

        Args:
            fbank: (B, T, F) normalised log-mel, or None.
            frames: (B, N, 3, H, W) normalised pictures with N = ``config.num_frames``, or None.
            audio_columns: How many columns of audio patches hold sound, where the rest is padding; None for all.

        Returns:
            Float32.
        """

    @abstractmethod
    def features(
        self,
        fbank: Tensor | None,
        frames: Tensor | None,
        *,
        trained_on_both: bool = True,
        pool_separate: bool = False,
    ) -> Tensor:
        """What a classifier's norm and head see of the modalities present.

        Args:
            fbank: As of `embed`.
            frames: As of `embed`.
            trained_on_both: Whether a modality that is absent was there in training.
            pool_separate: Whether, with both modalities present, what each says alone counts beside the joint.

        Returns:
            (B, feature_dim) float32, pooled, not normalised.
        """

    def sound_tokens(self, fbank: Tensor, columns: Tensor | None = None) -> Tokens:
        """The tokens of the sound alone, of the grid (F', T'); by default one, what `embed` gives.

        Args:
            fbank: (B, T, F) normalised log-mel.
            columns: (B,) how many columns of audio patches hold sound; None for all. It matters to what gives one token
                of the whole: of several, those of padding are known by their places.
        """
        if columns is None:
            return _one_token(self.embed(fbank, None).audio, 2)
        # Clips with as many columns go together, as in `models.pretrained`.
        groups = [(count, (columns == count).nonzero()[:, 0]) for count in columns.unique().tolist()]
        found = [
            _one_token(self.embed(fbank[rows], None, count).audio, 2).values[:, 0] for count, rows in groups
        ]
        order = torch.cat([rows for _, rows in groups]).argsort()
        return _one_token(torch.cat(found)[order], 2)

    def frame_tokens(self, frames: Tensor) -> Tokens:
        """The tokens of the frames alone, of the grid (N', H', W'); by default one, what `embed` gives.

        Args:
            frames: (B, N, 3, H, W) normalised pictures with N = ``config.num_frames``.
        """
        return _one_token(self.embed(None, frames).visual, 3)

    @abstractmethod
    def depth_of(self, name: str) -> int:
        """Place of a parameter of this module: 0 for embeddings, n for the n-th block, num_layers + 1 behind them."""

    @abstractmethod
    def feature_flops(self, audio: bool, visual: bool, pool_separate: bool = False) -> float:
        """FLOPs of `features` for one clip of the modalities given, linear layers alone, a multiply-add being 2."""

    @abstractmethod
    def feature_activations(self, audio: bool, visual: bool, bf16: bool, pool_separate: bool = False) -> int:
        """Bytes that `features` of one clip keeps for the backward pass."""

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside norms and biases that an optimizer should not decay."""


def _one_token(vectors: Tensor | None, axes: int) -> Tokens:
    assert vectors is not None
    return Tokens(vectors[:, None], vectors.new_ones(len(vectors), 1).bool(), (1,) * axes, vectors)
