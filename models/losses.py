"""Pretraining losses, on one device and in float32 whatever autocast says.

Each docstring holds the naive definition that the tests compare with. Losses over a global batch take
gathered tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize_patches(patches: Tensor) -> Tensor:
    """``(x - mean) / sqrt(var + 1e-6)`` of each patch, with the unbiased variance."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * (var + 1e-6).rsqrt()


def reconstruction_loss(pred: Tensor, target_patches: Tensor, mask: Tensor, norm_pix: bool = True) -> Tensor:
    """Mean squared error over removed patches.

    ::

        for each sample b and token l with mask[b, l] == 1:
            t = target_patches[b, l]
            if norm_pix: t = (t - mean(t)) / sqrt(unbiased_var(t) + 1e-6)
            e[b, l] = mean((pred[b, l] - t) ** 2)
        loss = mean of all these e

    Args:
        pred: (B, L, P).
        target_patches: (B, L, P) the input's patches.
        mask: (B, L), 1 = removed. At least one token must be removed; with none the loss is not a number.
        norm_pix: Whether targets are normalised patch by patch.

    Returns:
        Scalar float32.
    """
    with torch.autocast(pred.device.type, enabled=False):
        target = target_patches.float()
        if norm_pix:
            target = normalize_patches(target)
        error = (pred.float() - target).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()


def info_nce(queries: Tensor, keys: Tensor, positives: int, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries against keys, one direction.

    ::

        q, k = queries / |queries|, keys / |keys|
        for each row i:
            s = [q[i] . k[j] / temperature for all j]
            loss[i] = -log(exp(s[i + positives]) / sum(exp(s)))
            hit[i] = argmax(s) == i + positives
        mean(loss), mean(hit)

    As published: queries visual, keys audio. The mean of both directions is the caller's to compose.

    Args:
        queries: (b, D) this device's, not normalised.
        keys: (B, D) those of the global batch.
        positives: Index of the first query's positive key; the i-th query's is ``positives + i``.
        temperature: Divides the cosine similarities.

    Returns:
        Scalar float32 loss and accuracy (no gradient; chance is 1/B).
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
        logits = queries @ keys.T / temperature
        labels = torch.arange(positives, positives + len(queries), device=logits.device)
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), accuracy


def nt_xent(
    queries: Tensor, keys: Tensor, others: Tensor, positives: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Contrast of one set of views with another, where the own set's other samples are negatives too (SimCLR).

    ::

        q, k, o = queries / |queries|, keys / |keys|, others / |others|
        for each row i:
            s = [q[i] . k[j] / temperature for all j]
            r = [q[i] . o[j] / temperature for all j != i + positives]
            loss[i] = -log(exp(s[i + positives]) / (sum(exp(s)) + sum(exp(r))))
            hit[i] = all of s and r are at most s[i + positives]
        mean(loss), mean(hit)

    One direction, as `info_nce`: over the 2B views of two sets a and b, NT-Xent is the mean of ``nt_xent(a, b, a)`` and
    ``nt_xent(b, a, b)``.

    Args:
        queries: (b, D) views of this device, not normalised.
        keys: (B, D) the other set's views of the global batch.
        others: (B, D) the own set's views of the global batch; the queries are among them.
        positives: Index of the first query's sample in the global batch; the i-th query's is ``positives + i``.
        temperature: Divides the cosine similarities.

    Returns:
        Scalar float32 loss and accuracy (no gradient; chance is 1/(2B - 1)).
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, others = (F.normalize(x.float(), dim=-1) for x in (queries, keys, others))
        labels = torch.arange(positives, positives + len(queries), device=queries.device)
        itself = labels[:, None] == torch.arange(len(others), device=queries.device)
        same = (queries @ others.T / temperature).masked_fill(itself, float("-inf"))
        logits = torch.cat([queries @ keys.T / temperature, same], dim=1)
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), accuracy
