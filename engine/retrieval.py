"""Retrieval across modalities: does the sound of a clip find its picture, and the other way round."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows of the similarity matrix that are held at a time: 1024 × 100,000 float32 are 400 MB.
_BLOCK = 1024


def retrieval_metrics(queries: Tensor, gallery: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k and median rank by cosine similarity; the i-th query's match is the i-th of the gallery.

    ::

        s = cos(queries[i], gallery[j]) for all j
        above, tied = #(s > s[i]), #(s == s[i])          # tied counts the match itself
        recall@k of i = P(match among the first k, ties in random order) = clip((k - above) / tied, 0, 1)
        rank of i = 1 + above + (tied - 1) / 2

    So an embedding that is the same for every clip scores chance, k / N.

    Args:
        queries: (N, D), not normalised.
        gallery: (N, D), not normalised.
        ks: Which k.

    Returns:
        ``r1``, ``r5``, ... in 0 … 1 and ``median_rank``, from 1.
    """
    queries, gallery = F.normalize(queries.float(), dim=-1), F.normalize(gallery.float(), dim=-1)
    above, tied = [], []
    for start in range(0, len(queries), _BLOCK):
        similarity = queries[start : start + _BLOCK] @ gallery.T
        rows = torch.arange(len(similarity), device=similarity.device)
        match = similarity[rows, start + rows].unsqueeze(1)
        # Products of equal vectors differ in the last bits; such differences are ties.
        above.append((similarity > match + 1e-6).sum(1))
        tied.append(((similarity - match).abs() <= 1e-6).sum(1))
    above, tied = torch.cat(above).double(), torch.cat(tied).double()
    metrics = {f"r{k}": ((k - above) / tied).clamp(0, 1).mean().item() for k in ks}
    metrics["median_rank"] = (1 + above + (tied - 1) / 2).median().item()
    return metrics


def cross_modal_retrieval(audio: Tensor, visual: Tensor) -> dict[str, float]:
    """`retrieval_metrics` in both directions beside chance.

    Args:
        audio: (N, D) audio embeddings.
        visual: (N, D) visual embeddings of the same clips.

    Returns:
        ``retrieval_a2v_*``, ``retrieval_v2a_*``, and ``retrieval_chance_r1/5/10``.
    """
    values = {f"retrieval_a2v_{name}": value for name, value in retrieval_metrics(audio, visual).items()}
    values |= {f"retrieval_v2a_{name}": value for name, value in retrieval_metrics(visual, audio).items()}
    return values | {f"retrieval_chance_r{k}": min(1.0, k / len(audio)) for k in (1, 5, 10)}
