"""Models from tensors in the published names, the way all weights come in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from models.pretrained import load_model
from models.registry import families
from models.weights.initialize import InitReport
from models.weights.sources import SourceKind, SourceWeights


def load_published(state: Mapping[str, Tensor], **known: Any) -> tuple[Any, InitReport]:
    """The model that published tensors, with or without ``module.``, describe and fill."""
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    path = Path("published.pth")
    for published in (family.published for family in families()):
        if published is not None and published.recognises(bare):
            ours, left = published.to_ours(bare)
            source = SourceWeights(
                SourceKind.earsight, path, ours, left=left, published=published, published_state=bare
            )
            return load_model(source, **known)
    return load_model(SourceWeights(SourceKind.cav_mae, path, bare), **known)
