"""Trained encoders with their own preprocessing, in one line: ``load_pretrained("runs/pretrain")``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.classifier import AudioVisualClassifier
from models.config import ModelConfig
from models.encoders import Embeddings, Encoder
from models.frontend import AudioFrontEnd, FbankConfig, VisualFrontEnd
from models.registry import build_encoder, build_model
from models.weights.description import Description
from models.weights.errors import WeightsError
from models.weights.initialize import InitReport, initialize
from models.weights.sources import SourceKind, SourceWeights, read_weights, stated_description

M = TypeVar("M", bound=nn.Module)

#: What a model may have beyond the weights of a file that describes it, such as a decoder that was left out.
_SPARE_VALUES = 1 << 26


class PretrainedEncoders(nn.Module):
    """A family's encoder with its front ends: sound and pictures as decoded in, vectors out.

    Attributes:
        encoder: The encoder; use it directly for tokens.
        audio_front_end: Waveforms -> normalised log-mel.
        visual_front_end: uint8 pictures -> normalised.
        description: What the weights say about themselves.

    Args:
        encoder: The encoder.
        description: Its description; ``fbank`` is not None.
    """

    def __init__(self, encoder: Encoder[Any], description: Description) -> None:
        super().__init__()
        self.encoder = encoder
        self.audio_front_end = AudioFrontEnd(description.fbank)
        self.visual_front_end = VisualFrontEnd()
        self.description = description

    @property
    def config(self) -> ModelConfig:
        """Sizes of model and input."""
        return self.encoder.config

    @property
    def fbank(self) -> FbankConfig:
        """How spectrograms are made: ``sample_rate``, ``num_samples`` and more."""
        return self.audio_front_end.config

    def forward(
        self, waveform: Tensor | None = None, num_samples: Tensor | None = None, frames: Tensor | None = None
    ) -> Embeddings:
        """Mean-pooled vectors of whatever is present.

        Tokens of nothing but padding are left out, before the first block and in the mean, so a short
        clip's vectors are the same whatever it is batched with. Clips with the same number of tokens are
        encoded together.

        Args:
            waveform: (B, S) int16, or float in [-1, 1], padded to S; what is longer than the model's input
                is cut. None for no sound.
            num_samples: (B,) int64 true lengths; None where all fill S.
            frames: (B, N, 3, H, W) or (B, 3, H, W) uint8; None for no pictures.
        """
        if frames is not None and frames.ndim == 4:
            frames = frames[:, None]
        pictures = None if frames is None else self.visual_front_end(frames)
        if waveform is None:
            return self._encode(None, pictures, None)
        if num_samples is None:
            num_samples = torch.full((len(waveform),), waveform.shape[1], device=waveform.device)
        fbank = self.audio_front_end(waveform, num_samples.clamp_max(self.fbank.num_samples))
        columns = self.audio_columns(num_samples)
        parts: list[tuple[Tensor, Embeddings]] = []
        for count in columns.unique().tolist():
            rows = (columns == count).nonzero()[:, 0]
            shown = None if pictures is None else pictures[rows]
            parts.append((rows, self._encode(fbank[rows], shown, count)))
        return _in_order(parts)

    def audio_columns(self, num_samples: Tensor) -> Tensor:
        """(B,) true lengths in samples -> (B,) columns of audio patches that hold sound, at least 1."""
        fbank, patch = self.fbank, self.config.audio_patch_length
        frames = (num_samples - fbank.frame_length) // fbank.frame_shift + 1
        return ((frames + patch - 1) // patch).clamp(1, self.config.audio_length // patch)

    def _encode(self, fbank: Tensor | None, pictures: Tensor | None, columns: int | None) -> Embeddings:
        """The sound beside as many frames as the encoder takes at a time, and the mean of what these give."""
        views: Sequence[Tensor | None] = [None]
        if pictures is not None:
            at_once = self.config.num_frames
            if pictures.shape[1] % at_once:
                raise ValueError(f"{pictures.shape[1]} frames a clip: the model takes {at_once} at a time")
            views = pictures.split(at_once, dim=1)
        found = [self.encoder.embed(fbank, view, columns) for view in views]
        return Embeddings(found[0].audio, _mean([x.visual for x in found]), _mean([x.joint for x in found]))


def _mean(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.stack(present).mean(dim=0) if present else None


def _in_order(parts: list[tuple[Tensor, Embeddings]]) -> Embeddings:
    order = torch.cat([rows for rows, _ in parts]).argsort()

    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for _, part in parts]
        return None if values[0] is None else torch.cat(values)[order]

    return Embeddings(join("audio"), join("visual"), join("joint"))


def load_pretrained(source: str | PathLike[str], **known: Any) -> PretrainedEncoders:
    """The encoders of a run, a checkpoint, an exported model or a published CAV-MAE file, ready for use.

    Args:
        source: See `models.weights.sources.read_weights`.
        known: Fields of `ModelConfig` that a published file's shapes don't tell, such as ``num_heads``.

    Returns:
        In evaluation mode, on the CPU.

    Raises:
        WeightsError: There are no such weights, or they are no trained audio-visual encoder.
    """
    found = read_weights(source)
    if found.kind is SourceKind.vit:
        raise WeightsError(
            f"{found.path} is a picture model: a start for training (init), no audio-visual encoder"
        )
    config = found.model_config(**known)
    encoder = build_described(found, config, lambda: build_encoder(config))
    initialize(encoder, found)
    return PretrainedEncoders(encoder, describe(found, config)).eval()


def describe(source: SourceWeights, config: ModelConfig) -> Description:
    """The description of weights; spectrograms are the published ones where the source doesn't say."""
    theirs = source.published.fbank if source.published else FbankConfig()
    fbank = source.fbank or replace(
        theirs, target_length=config.audio_length, num_mel_bins=config.num_mel_bins
    )
    return Description(config, fbank, source.labels, source.provenance)


def read_description(source: str | PathLike[str]) -> Description | None:
    """The description of weights; tensors are read only of files that say nothing of their model.

    Args:
        source: See `models.weights.sources.read_weights`.

    Returns:
        None for image models, and where neither file nor shapes tell the model.

    Raises:
        WeightsError: There are no such weights.
    """
    stated = stated_description(source)
    if stated is not None:
        return stated
    found = read_weights(source)
    if found.kind is SourceKind.vit:
        return None
    try:
        return describe(found, found.model_config())
    except WeightsError:
        return None


def load_model(
    source: SourceWeights, allow: Sequence[str] = (), **known: Any
) -> tuple[nn.Module, InitReport]:
    """The whole model in a source: a classifier, an autoencoder, or the encoder where there is no more.

    What a ViT leaves open is initialised from seed 0.

    Args:
        source: The weights.
        allow: See `models.weights.initialize.initialize`.
        known: Fields of `ModelConfig` that the shapes don't tell.
    """
    config = source.model_config(**known)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_described(source, config, partial(_build_whole, source, config))
    return model, initialize(model, source, allow)


def _build_whole(source: SourceWeights, config: ModelConfig) -> nn.Module:
    if source.num_classes is not None:
        return AudioVisualClassifier(config, source.num_classes)
    return build_encoder(config) if source.is_encoder_alone else build_model(config)


def build_described(source: SourceWeights, config: ModelConfig, build: Callable[[], M]) -> M:
    """What ``build`` makes, if the model that weights describe is about as large as they are.

    Raises:
        WeightsError: It is far larger, or of sizes that no model has: a description may say anything.
    """
    try:
        if source.config is not None and config.is_self_contained:
            with torch.device("meta"):  # no memory is taken
                values = sum(value.numel() for value in build().state_dict().values())
            held = sum(value.numel() for value in source.state.values())
            if values > 2 * held + _SPARE_VALUES:
                raise WeightsError(f"it describes a model of {values} values and holds {held}")
        return build()
    except ValueError as error:
        raise WeightsError(f"{source.path}: {error}") from error


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state in the names of files, where an encoder's begin with ``encoder.``."""
    prefix = "encoder." if isinstance(model, Encoder) else ""
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}
