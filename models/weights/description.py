"""What a file of weights says about itself: model, preprocessing, classes, and where it comes from.

It travels as JSON in the metadata of a safetensors file, so that one file is all one has to keep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from models.config import ModelConfig
from models.frontend import IMAGENET_MEAN, IMAGENET_STD, FbankConfig
from models.registry import family_of
from models.weights.errors import WeightsError
from models.weights.tensor_files import write_safetensors

T = TypeVar("T")

METADATA_KEY = "earsight"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Description:
    """A model's description.

    Attributes:
        model: Its sizes.
        fbank: How its spectrograms are made; None where that is not known.
        labels: Names of the classes of its head, if any.
        provenance: Where the weights come from: run, step, data, versions; plain JSON values.
    """

    model: ModelConfig
    fbank: FbankConfig | None = None
    labels: tuple[str, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The description as plain values."""
        frames = {
            "size": self.model.image_size,
            "resize": "shorter side, bicubic, antialiased; then the centre square",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }
        return {
            "version": FORMAT_VERSION,
            "model": asdict(self.model),
            "fbank": None if self.fbank is None else asdict(self.fbank),
            "frames": frames,
            "labels": self.labels,
            "provenance": self.provenance,
        }


def parse_description(values: Mapping[str, Any], where: str) -> Description:
    """The inverse of `Description.to_json`.

    Args:
        values: Plain values.
        where: What they were read from, for errors.

    Raises:
        WeightsError: They are of a later version, or no such description.
    """
    version = values.get("version")
    if version != FORMAT_VERSION:
        raise WeightsError(
            f"{where}: its format version is {version!r:.100}; this program reads {FORMAT_VERSION}"
        )
    labels, provenance = values.get("labels"), values.get("provenance") or {}
    if labels is not None and not (
        isinstance(labels, list) and all(isinstance(name, str) for name in labels)
    ):
        raise WeightsError(f"{where}: labels is no list of names")
    if not isinstance(provenance, Mapping):
        raise WeightsError(f"{where}: provenance is no mapping")
    return Description(
        parse_model(values.get("model"), where),
        None if values.get("fbank") is None else parse_fbank(values["fbank"], where),
        None if labels is None else tuple(labels),
        dict(provenance),
    )


def parse_model(values: Any, where: str) -> ModelConfig:
    """A model's config from plain values, as `dataclasses.asdict` or a YAML file has them."""
    if not isinstance(values, Mapping) or not isinstance(name := values.get("name"), str) or len(name) > 100:
        raise WeightsError(f"{where}: model is {values!r:.200}, not settings with a name")
    try:
        kind = family_of(name).config
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error
    return _settings(kind, values, f"{where}: model")


def _settings(kind: type[T], values: Any, where: str) -> T:
    """A dataclass of settings, and those within it, from plain values."""
    _check_keys(values, kind, where)
    parts = {
        f.name: type(f.default_factory())
        for f in fields(cast(Any, kind))
        if f.default_factory is not MISSING and is_dataclass(f.default_factory())
    }
    given = {
        name: _settings(parts[name], value, f"{where}.{name}")
        if name in parts and value is not None
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    return _made(kind, given, where)


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    try:
        return kind(**values)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:  # of values of any kind
        raise WeightsError(f"{where}: {error}") from error


def parse_fbank(values: Any, where: str) -> FbankConfig:
    """An `FbankConfig` from plain values."""
    _check_keys(values, FbankConfig, f"{where}: fbank")
    return _made(FbankConfig, values, f"{where}: fbank")


def _check_keys(values: Any, kind: type, where: str) -> None:
    if not isinstance(values, Mapping):
        raise WeightsError(f"{where} is {values!r:.200}, not a mapping")
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise WeightsError(f"{where} has unknown settings: {', '.join(map(str, unknown)):.200}")


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def save_described(path: Path, state: Mapping[str, Tensor], description: Description) -> dict[str, Any]:
    """Writes float32 weights and their description to one file; returns what it says of itself."""
    weights = {name: value.detach().float().cpu().contiguous() for name, value in state.items()}
    values = {**description.to_json(), "weights_sha256": weights_hash(weights)}
    write_safetensors(path, weights, {METADATA_KEY: json.dumps(values)})
    return values
