"""Pretraining objectives by ``objective.kind``. An objective's file registers it when it is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from engine.objectives.base import ObjectiveConfig, PretrainingObjective
from models import FbankConfig, ModelConfig, family_of
from models.config import unknown_name


@dataclass(frozen=True)
class ObjectiveKind:
    """A kind of objective.

    Attributes:
        name: What ``objective.kind`` says.
        config: Its settings; ``kind`` is ``name`` by default.
        build: From the model, the spectrogram's settings and its own.
        families: The model families that it trains.
        default_model: The preset where ``model.name`` is not given.
    """

    name: str
    config: type[ObjectiveConfig]
    build: Callable[[Any, FbankConfig, Any], PretrainingObjective[Any]]
    families: tuple[str, ...]
    default_model: str

    def check_model(self, model: ModelConfig) -> None:
        """Raises ``ValueError`` for a model of a family that it does not train."""
        family = family_of(model.name).name
        if family not in self.families:
            raise ValueError(
                f"objective.kind {self.name} trains models of {' or '.join(self.families)}, and model.name "
                f"{model.name} is of {family}: give model.name={self.default_model}, or another of that family"
            )


_KINDS: dict[str, ObjectiveKind] = {}


def register_objective(kind: ObjectiveKind) -> ObjectiveKind:
    """Makes an objective known.

    Raises:
        ValueError: The name is taken.
    """
    if kind.name in _KINDS:
        raise ValueError(f"an objective of the kind {kind.name!r} is registered already")
    _KINDS[kind.name] = kind
    return kind


def list_objectives() -> list[str]:
    """The kinds there are."""
    return sorted(_KINDS)


def objective_kind(name: str) -> ObjectiveKind:
    """The kind of this name.

    Raises:
        ValueError: There is none; the nearest known ones are named.
    """
    if name not in _KINDS:
        raise unknown_name("objective.kind", name, _KINDS)
    return _KINDS[name]


def build_objective(
    model: nn.Module, fbank: FbankConfig, config: ObjectiveConfig
) -> PretrainingObjective[Any]:
    """The objective of a config around a model."""
    return objective_kind(config.kind).build(model, fbank, config)
