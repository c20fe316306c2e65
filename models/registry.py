"""Model families, and their presets by name. A family is a package that registers itself when it is imported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from models.config import ModelConfig, unknown_name
from models.encoders import Encoder
from models.frontend import FbankConfig

#: Most layers of a kind, largest width and side, most values of one activation of one clip.
_DEEPEST, _WIDEST, _MOST_VALUES = 256, 65_536, 1 << 28


@dataclass(frozen=True)
class PublishedFormat:
    """Weights as a family's authors publish them, in names and layout of their own.

    Attributes:
        title: For messages, such as ``published MAViL``.
        recognises: Whether tensors (without prefixes of wrapping modules) are in this format.
        infer_config: The model that published names and shapes describe; keywords are settings that they don't tell.
        to_ours: The tensors in our names and layout, and by name those without a place, each with why.
        to_published: A model's state in the published names.
        encoder_alone: Whether the published code takes an encoder without the rest of the model.
        fbank: The spectrogram that its weights were trained on, where it is not the default one.
        limits: What the published code can't do with a model of this config, a sentence each.
    """

    title: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    infer_config: Callable[..., ModelConfig]
    to_ours: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, str]]]
    to_published: Callable[[nn.Module], dict[str, Tensor]]
    encoder_alone: bool = False
    fbank: FbankConfig = field(default_factory=FbankConfig)
    limits: Callable[[Any], list[str]] = lambda config: []


@dataclass(frozen=True)
class VitRules:
    """A plain ViT's tensors (ImageNet MAE, timm) in a family's names.

    Attributes:
        pull: From one of our names, the ViT's tensors and our config: the tensor's name there, its value in our layout,
            and what was done to it; None where a ViT has none.
        why_anew: Why a ViT can't have a tensor of ours; None if it should have it.
        why_ignored: Why a ViT's tensor has no place in ours; None if it should have one.
    """

    pull: Callable[[str, Mapping[str, Tensor], Any], tuple[str, Tensor, str | None] | None]
    why_anew: Callable[[str], str | None]
    why_ignored: Callable[[str], str | None]


@dataclass(frozen=True)
class Extension:
    """A family of which another is an extension, so that its weights can begin the other's.

    Attributes:
        family: Its name.
        added: The other's names that it has not, in files (``encoder. ...``).
    """

    family: str
    added: re.Pattern[str]


@dataclass(frozen=True)
class Family:
    """A kind of model: its config, its presets and how it is built.

    Attributes:
        name: Of the family, such as ``cav_mae``.
        config: Its config; ``name`` is one of the presets.
        presets: By name, what each is for, in a line.
        build: The whole pretraining model from a config; its encoder is its attribute ``encoder``.
        build_encoder: What is kept of it.
        published: Its authors' weights, where there are any.
        vit: How a plain ViT's tensors become its own; that of CAV-MAE where it is None.
        extends: The family whose weights can begin one of this, where there is one.
    """

    name: str
    config: type[ModelConfig]
    presets: Mapping[str, str]
    build: Callable[[Any], nn.Module]
    build_encoder: Callable[[Any], Encoder[Any]]
    published: PublishedFormat | None = None
    vit: VitRules | None = None
    extends: Extension | None = None


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Makes a family and its presets known.

    Raises:
        ValueError: The family's name or that of a preset is taken.
    """
    if family.name in _FAMILIES:
        raise ValueError(f"a model family named {family.name!r} is registered already")
    taken = sorted(set(family.presets) & set(list_models()))
    if taken:
        raise ValueError(f"model {taken[0]!r} is registered already, by {family_of(taken[0]).name!r}")
    _FAMILIES[family.name] = family
    return family


def families() -> list[Family]:
    """All families, in the order of their registration."""
    return list(_FAMILIES.values())


def list_models() -> list[str]:
    """The names `create_model` knows."""
    return sorted(name for family in _FAMILIES.values() for name in family.presets)


def family_of(name: str) -> Family:
    """The family of a preset.

    Raises:
        ValueError: No family has it; the nearest known names are given.
    """
    for family in _FAMILIES.values():
        if name in family.presets:
            return family
    raise unknown_name("model", name, list_models())


def create_config(name: str, **overrides: Any) -> ModelConfig:
    """The config of a preset.

    Args:
        name: One of `list_models`.
        overrides: Fields of the family's config other than the preset's.

    Raises:
        ValueError: The name or an override is unknown (the nearest known ones are named), or the sizes do not fit.
    """
    config = family_of(name).config
    known = {f.name for f in fields(config)} - {"name"}
    for key in overrides:
        if key not in known:
            raise unknown_name("model setting", key, known)
    return config(name=name, **overrides)


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Builds a model, randomly initialised; arguments and errors as of `create_config`."""
    return build_model(create_config(name, **overrides))


def check_sizes(config: ModelConfig) -> None:
    """Raises a ``ValueError`` for sizes that no model has, before a machine's memory is spent on them."""
    for place, value in _numbers(asdict(config), "model"):
        name = place.rpartition(".")[2]
        largest = _DEEPEST if "depth" in name or "convs" in name else _WIDEST
        if value > largest:
            raise ValueError(f"{place} is {value:.15g}; it can be {largest} at most")
    inputs = max(config.audio_length * config.num_mel_bins, config.image_size**2)
    tokens = inputs // getattr(config, "patch_size", 16) ** 2 * config.num_frames
    if tokens * config.encoder_width > _MOST_VALUES:
        raise ValueError(
            f"model: an input of {tokens} patches of width {config.encoder_width} is more than can be computed with: "
            "make image_size, audio_length or the width smaller, or patch_size larger"
        )


def _numbers(values: Mapping[str, Any], where: str) -> Iterator[tuple[str, int | float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{where}.{name}")
        elif isinstance(value, int | float):
            yield f"{where}.{name}", value


def build_model(config: ModelConfig) -> nn.Module:
    """Builds the pretraining model of a config, randomly initialised; ``ValueError`` as of `check_sizes`."""
    check_sizes(config)
    return family_of(config.name).build(config)


def build_encoder(config: ModelConfig) -> Encoder[Any]:
    """Builds the encoder of a config alone, randomly initialised; ``ValueError`` as of `check_sizes`."""
    check_sizes(config)
    return family_of(config.name).build_encoder(config)
