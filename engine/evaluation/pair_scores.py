"""How alike the sound of one clip and the picture of another are, where several moments of each are embedded.

The four scores of CAV-MAE Sync, with ``a_i`` and ``b_j`` the normalised vectors of moments i and j of two clips::

    diagonal_mean = mean over i of a_i . b_i            # the published choice
    diagonal_max  = max over i of a_i . b_i
    mean          = mean over i and j of a_i . b_j
    max           = max over i and j of a_i . b_j

Each is one matrix product over all clips, which the caller cuts in blocks of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor


@dataclass(frozen=True)
class PairScore:
    """A score of pairs of clips.

    Attributes:
        similarity: (b, N, D) queries and (n, N, D) gallery, of N moments each and normalised -> (b, n).
        held: With how many moments to how many numbers it holds for each pair of clips.
    """

    similarity: Callable[[Tensor, Tensor], Tensor]
    held: Callable[[int], int]


def _diagonal_mean(queries: Tensor, gallery: Tensor) -> Tensor:
    return (queries.flatten(1) / queries.shape[1]) @ gallery.flatten(1).T


def _diagonal_max(queries: Tensor, gallery: Tensor) -> Tensor:
    return torch.einsum("q i d, g i d -> i q g", queries, gallery).amax(dim=0)


def _mean(queries: Tensor, gallery: Tensor) -> Tensor:
    return queries.mean(dim=1) @ gallery.mean(dim=1).T


def _max(queries: Tensor, gallery: Tensor) -> Tensor:
    product = rearrange(queries, "q i d -> (q i) d") @ rearrange(gallery, "g j d -> (g j) d").T
    return reduce(product, "(q i) (g j) -> q g", "max", i=queries.shape[1], j=gallery.shape[1])


PAIR_SCORES = {
    "diagonal_mean": PairScore(_diagonal_mean, lambda moments: 1),
    "diagonal_max": PairScore(_diagonal_max, lambda moments: moments),
    "mean": PairScore(_mean, lambda moments: 1),
    "max": PairScore(_max, lambda moments: moments * moments),
}


def pair_score(name: str) -> PairScore:
    """The score of a name.

    Raises:
        ValueError: There is none; the names there are are listed.
    """
    if name not in PAIR_SCORES:
        raise ValueError(f"there is no retrieval score {name!r}; there are {', '.join(PAIR_SCORES)}")
    return PAIR_SCORES[name]
