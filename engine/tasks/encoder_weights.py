"""Taking over the encoders of a pretraining run, or a whole fine-tuned classifier, strictly and with a report.

`models.weights.initialize` accounts for every tensor and fits positions to other clip lengths and image sizes; a
checkpoint that does not fit is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from engine.records.runlog import logger
from models import AudioVisualClassifier, Encoder, FbankConfig, ModelConfig
from models.weights.errors import WeightsError
from models.weights.initialize import InitReport, initialize
from models.weights.sources import SourceWeights, read_weights

#: Sizes that may differ from those trained with.
_INPUT_SIZES = ("image_size", "audio_length", "num_mel_bins")


def load_encoder_weights(
    path: str, encoder: Encoder[Any], fbank: FbankConfig, allow: Sequence[str] = ()
) -> InitReport:
    """Gives ``encoder`` the weights of ``path`` and logs what became of each.

    Args:
        path: A run, a checkpoint, or whatever else `models.weights.sources.read_weights` takes.
        encoder: What to fill.
        fbank: This run's spectrograms. Where the weights were trained on others, or on another length or size, the
            log says so, and what to give for the same.
        allow: See `models.weights.initialize.initialize`.

    Raises:
        WeightsError: There are no such weights, or they are no such encoder's; what differs is named.
    """
    source = read_weights(path)
    report = initialize(encoder, source, allow)
    logger.info("%s", report)
    _compare_inputs(source, encoder.config, fbank)
    return report


def load_classifier_weights(
    path: str,
    model: AudioVisualClassifier,
    fbank: FbankConfig,
    classes: list[str],
    allow: Sequence[str] = (),
) -> InitReport:
    """The same for a fine-tuned classifier with its head.

    Args:
        path: A fine-tuned run or checkpoint.
        model: What to fill.
        fbank: As of `load_encoder_weights`.
        classes: Names of the model's classes.
        allow: As of `load_encoder_weights`.

    Raises:
        WeightsError: As of `load_encoder_weights`; or there is no head, or one of other classes.
    """
    source = read_weights(path)
    if source.num_classes is None:
        raise WeightsError(
            f"{path} has no classification head: give a fine-tuned run or checkpoint (exports hold the encoders alone)"
        )
    if source.num_classes != len(classes):
        raise WeightsError(
            f"{path} has a head of {source.num_classes} classes, and the training set has {len(classes)}: give "
            "the set it was trained on as data.train; to train a new head instead, leave init_head out"
        )
    if source.labels is not None and list(source.labels) != classes:
        raise WeightsError(
            f"{path} was trained on other classes than the training set has, or in another order"
        )
    report = initialize(model, source, allow)
    logger.info("%s", report)
    _compare_inputs(source, model.config, fbank)
    return report


def has_head(path: str) -> bool:
    """Whether the weights of ``path`` include a classification head."""
    return read_weights(path).num_classes is not None


def _compare_inputs(source: SourceWeights, config: ModelConfig, fbank: FbankConfig) -> None:
    """Warns where the weights fit and yet were trained on other input, with what to give for the same."""
    pairs: list[tuple[str, object, object]] = []
    if source.config is not None:
        pairs += [(f"model.{key}", getattr(source.config, key), getattr(config, key)) for key in _INPUT_SIZES]
    if source.fbank is not None:
        keys = [
            f.name for f in fields(fbank) if f.name not in ("target_length", "num_mel_bins")
        ]  # the model's
        pairs += [(f"fbank.{key}", getattr(source.fbank, key), getattr(fbank, key)) for key in keys]
    for key, theirs, ours in pairs:
        if theirs != ours:
            logger.warning(
                "%s was trained with %s %s, this config has %s; unless that is meant, give %s=%s",
                source.path, key, theirs, ours, key, theirs,
            )  # fmt: skip
