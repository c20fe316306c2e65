"""Models from tensors in the published names, the way all weights come in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.pretrained import load_model
from models.weights.initialize import InitReport
from models.weights.sources import SourceKind, SourceWeights


def load_published(state: Mapping[str, Tensor], **known: Any) -> tuple[Any, InitReport]:
    """The model that published tensors, with or without ``module.``, describe and fill."""
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    return load_model(SourceWeights(SourceKind.cav_mae, Path("published.pth"), bare), **known)
