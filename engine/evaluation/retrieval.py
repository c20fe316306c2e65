"""Retrieval across modalities: does the sound of a clip find its picture, and vice versa."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.evaluation.pair_scores import pair_score

#: Similarities held at a time: 2^26 float32 are 268 MB, 671 queries against 100,000 clips.
_BLOCK = 1 << 26
#: Products of equal vectors differ in the last bits; smaller differences of similarity are ties.
_TIE = 1e-6


def retrieval_metrics(
    queries: Tensor, gallery: Tensor, ks: tuple[int, ...] = (1, 5, 10), score: str = "diagonal_mean"
) -> dict[str, float]:
    """Recall at k and median rank by cosine similarity; the i-th query's match is the i-th of the gallery.

    ::

        s = similarity(queries[i], gallery[j]) for all j # cos, or the score of the cosines of all moments
        above, tied = #(s > s[i]), #(s == s[i])          # tied counts the match itself
        recall@k of i = P(match among the first k, ties in random order) = clip((k - above) / tied, 0, 1)
        rank of i = 1 + above + (tied - 1) / 2

    So an embedding that is the same for every clip scores chance, k / N.

    Args:
        queries: (N, D), or (N, M, D) of M moments of each clip; not normalised.
        gallery: Of the same shape.
        ks: Which k.
        score: Which of `engine.evaluation.pair_scores`; with one vector a clip all are the cosine.

    Returns:
        ``r1``, ``r5``, ... in 0 … 1 and ``median_rank``, from 1; of an even number the mean of the middle two.

    Raises:
        ValueError: An embedding is not finite.
    """
    queries, gallery = _normalized(queries, gallery)
    return _recalls(_similarities(queries, gallery, score), ks, _TIE)


def similarity_metrics(similarity: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """`retrieval_metrics` where what is compared is no pair of vectors: from the similarities themselves.

    Ties are those that differ by less than 1e-6 of the largest similarity.

    Args:
        similarity: (N, N), rows are queries; the i-th one's match is the i-th column.
        ks: Which k.

    Raises:
        ValueError: A similarity is not finite, or the shape is another.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarities must be (N, N), not {tuple(similarity.shape)}")
    if not torch.isfinite(similarity).all():
        raise ValueError("a similarity is not finite: nothing can be retrieved with it")
    return _recalls([(0, similarity.float())], ks, _TIE * similarity.abs().max().item())


def _recalls(blocks: Iterable[tuple[int, Tensor]], ks: tuple[int, ...], tie: float) -> dict[str, float]:
    """`retrieval_metrics` from blocks of rows of the similarities, each with the place of its first row."""
    above, tied = [], []
    for start, similarity in blocks:
        rows = torch.arange(len(similarity), device=similarity.device)
        match = similarity[rows, start + rows].unsqueeze(1)
        above.append((similarity > match + tie).sum(1))
        tied.append((similarity >= match - tie).sum(1) - above[-1])
    above, tied = torch.cat(above).double(), torch.cat(tied).double()
    metrics = {f"r{k}": ((k - above) / tied).clamp(0, 1).mean().item() for k in ks}
    metrics["median_rank"] = (1 + above + (tied - 1) / 2).quantile(0.5).item()
    return metrics


def class_retrieval_map(
    queries: Tensor, gallery: Tensor, labels: Tensor, score: str = "diagonal_mean"
) -> float:
    """Mean average precision of finding clips of a class: relevant is what shares a label with the query.

    ::

        AP of a query = Σ over ranks of precision × (recall gained)     # equal similarities share a rank

    So an embedding that is the same for every clip scores the share of relevant clips. Queries without a
    label are left out.

    Args:
        queries: (N, D) or (N, M, D), not normalised.
        gallery: Of the same shape; the query's own clip is part of it.
        labels: (N, C) 0 or 1, of both.
        score: As of `retrieval_metrics`.

    Returns:
        The mean over queries, in 0 … 1.

    Raises:
        ValueError: An embedding is not finite, or no clip has a label.
    """
    queries, gallery = _normalized(queries, gallery)
    relevant = _Relevant(labels)
    averages = []
    for start, similarity in _similarities(queries, gallery, score):
        # Whole multiples of the tolerance, so that what differs in the last bits is equal.
        rounded = similarity.div_(_TIE).round_().cpu().numpy()
        for row, values in enumerate(rounded, start):
            found = np.sort(values[relevant.mask(row)])
            values.sort()
            # A clip's rank is the last of those as similar as it is.
            hits = len(found) - np.searchsorted(found, found)
            ranks = len(values) - np.searchsorted(values, found)
            if len(found):
                averages.append((hits / ranks).mean())
    return _mean_over_queries(averages)


class _Relevant:
    """Which clips share a label with a query.

    Args:
        labels: (N, C) 0 or 1.
    """

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels.cpu().numpy() > 0
        self._members = [np.flatnonzero(column) for column in self._labels.T]

    def mask(self, row: int) -> np.ndarray:
        """(N,) bool: the clips that share a label with clip ``row``."""
        mask = np.zeros(len(self._labels), dtype=bool)
        for label in np.flatnonzero(self._labels[row]):
            mask[self._members[label]] = True
        return mask

    def share(self) -> float:
        """The share of relevant clips, as a mean over queries: what `class_retrieval_map` gives chance."""
        shares = [self.mask(row).mean() for row in np.flatnonzero(self._labels.any(1)).tolist()]
        return _mean_over_queries(shares)


def _mean_over_queries(values: list[np.floating]) -> float:
    if not values:
        raise ValueError("no clip has a label: retrieval by class has nothing to measure")
    return float(np.mean(values))


def _normalized(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    for name, embeddings in (("query", queries), ("gallery", gallery)):
        if not torch.isfinite(embeddings).all():
            raise ValueError(f"a {name} embedding is not finite: nothing can be retrieved with it")
    return F.normalize(queries.float(), dim=-1), F.normalize(gallery.float(), dim=-1)


def _similarities(queries: Tensor, gallery: Tensor, score: str) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows of the (N, N) similarities of normalised clips, each with the place of its first row."""
    if queries.ndim == 2:
        queries, gallery = queries[:, None], gallery[:, None]
    chosen = pair_score(score)
    step = max(1, _BLOCK // max(1, len(gallery) * chosen.held(gallery.shape[1])))
    for start in range(0, len(queries), step):
        yield start, chosen.similarity(queries[start : start + step], gallery)


def cross_modal_retrieval(
    audio: Tensor, visual: Tensor, labels: Tensor | None = None, score: str = "diagonal_mean"
) -> dict[str, float]:
    """`retrieval_metrics` in both directions beside chance.

    Args:
        audio: (N, D) audio embeddings, or (N, M, D) of M moments of each clip.
        visual: Visual embeddings of the same clips, of the same shape.
        labels: (N, C) 0 or 1 adds ``map``, `class_retrieval_map`, beside its chance.
        score: As of `retrieval_metrics`.

    Returns:
        ``retrieval_a2v_*``, ``retrieval_v2a_*``, and ``retrieval_chance_r1/5/10``.
    """
    values = {}
    for way, pair in (("a2v", (audio, visual)), ("v2a", (visual, audio))):
        metrics = retrieval_metrics(*pair, score=score)
        values |= {f"retrieval_{way}_{name}": value for name, value in metrics.items()}
    values |= {f"retrieval_chance_r{k}": min(1.0, k / len(audio)) for k in (1, 5, 10)}
    if labels is not None:
        values["retrieval_a2v_map"] = class_retrieval_map(audio, visual, labels, score)
        values["retrieval_v2a_map"] = class_retrieval_map(visual, audio, labels, score)
        values["retrieval_chance_map"] = _Relevant(labels).share()
    return values


def similarity_retrieval(similarity: Tensor) -> dict[str, float]:
    """`similarity_metrics` in both directions beside chance: (N, N), rows are sounds, columns pictures."""
    values = {f"retrieval_a2v_{name}": value for name, value in similarity_metrics(similarity).items()}
    values |= {f"retrieval_v2a_{name}": value for name, value in similarity_metrics(similarity.T).items()}
    return values | {f"retrieval_chance_r{k}": min(1.0, k / len(similarity)) for k in (1, 5, 10)}


def nearest(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """(Q, count) places of the gallery's most similar clips, the best first."""
    queries, gallery = _normalized(queries, gallery)
    return (queries @ gallery.T).topk(min(count, len(gallery)), dim=1).indices
