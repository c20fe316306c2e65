"""Where in the picture the sound comes from: heatmaps against masks of what sounds.

Shape legend: ``N`` clips, ``P`` places of an (H, W) grid, ``T`` audio tokens, ``h w`` pixels of the masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from models.dense.similarity import weighted_mean

#: Thresholds between the lowest and the highest heat among which the oracle chooses (DenseAV's 20).
_THRESHOLDS = 20
#: A heatmap is a hit when its IoU with the mask is at least this.
_HIT = 0.5


def heatmaps(volume: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """The heat of each clip's picture: the volume's mean over its sound.

    Not scaled: a clip's heat depends on nothing but the clip. See `scaled_to_unit`, `to_pixels`.

    Args:
        volume: (N, P, T) similarities of a clip's places with its moments, heads joined.
        weight: (N, T) how much each moment counts; where all are 0, so is the heat.
        grid: H and W with P = H·W.

    Returns:
        (N, H, W) float32.
    """
    heat = weighted_mean(volume.float(), weight.float()[:, None])
    return rearrange(heat, "n (h w) -> n h w", h=grid[0], w=grid[1])


def to_pixels(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear: (N, H, W) -> (N, h, w)."""
    return F.interpolate(heat[:, None], size, mode="bilinear", align_corners=False).squeeze(1)


def scaled_to_unit(heat: Tensor) -> Tensor:
    """All heat of a set on one scale from 0 (its lowest) to 1 (its highest)."""
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny)


def average_precision(heat: Tensor, truth: Tensor) -> float:
    """Average precision of all pixels together; the share of true pixels is chance.

    Args:
        heat: (N, h, w).
        truth: (N, h, w) bool.
    """
    from sklearn.metrics import average_precision_score  # slow, and only the end of an evaluation needs it

    return float(average_precision_score(truth.flatten().cpu().numpy(), heat.flatten().cpu().numpy()))


def best_threshold_iou(heat: Tensor, truth: Tensor) -> float:
    """The best IoU of 20 thresholds, all pixels together: an oracle's, since the mask chooses the threshold.

    ::

        for each threshold of linspace(min(heat), max(heat), 20):
            hot = heat > threshold
            IoU = #(hot and truth) / #(hot or truth)
        the highest
    """
    heat, truth = heat.flatten(), truth.flatten()
    scores = [
        _iou(heat > threshold, truth) for threshold in torch.linspace(heat.min(), heat.max(), _THRESHOLDS)
    ]
    return torch.stack(scores).max().item()


def _iou(hot: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union over the last dimension; 0 where both are empty."""
    union = (hot | truth).sum(-1)
    return (hot & truth).sum(-1) / union.clamp_min(1)


def segmentation_by_class(heat: Tensor, truth: Tensor, classes: Tensor) -> dict[int, dict[str, float]]:
    """Average precision and best-threshold IoU of each class of sounds, over all pixels of its clips together.

    Args:
        heat: (N, h, w), all on one scale, not scaled clip by clip.
        truth: (N, h, w) bool: the pixels of the class that sounds.
        classes: (N,) int64.

    Returns:
        ``ap`` and ``iou`` by class, ascending. The mean over classes is DenseAV's mAP and mIoU.
    """
    found = {}
    for number in classes.unique().tolist():
        rows = classes == number
        ap, iou = (score(heat[rows], truth[rows]) for score in (average_precision, best_threshold_iou))
        found[number] = {"ap": ap, "iou": iou}
    return found


def grounding_scores(heat: Tensor, sounding: Tensor, silent: Tensor) -> dict[str, float]:
    """Whether heat lies on what sounds, and not on what is silent, each beside what chance gives.

    ::

        pointing         share of clips whose hottest pixel lies on what sounds; chance: its share of the area
        pointing_silent  the same of the silent objects
        iou_half         mean IoU of the pixels above half of the picture's own range of heat: a fixed threshold
        ciou             share of clips with that IoU at least 0.5
        heat_share       mean of (Σ positive heat on what sounds) / (Σ positive heat); chance: the share of the area
        heat_share_silent  the same of the silent objects
        ap, best_iou     over all pixels of all clips, see `average_precision`, `best_threshold_iou`

    A picture without any positive heat has no share of it: both shares are 0.

    Args:
        heat: (N, h, w).
        sounding: (N, h, w) bool.
        silent: (N, h, w) bool, what is seen of the silent objects.

    Raises:
        ValueError: There are no clips, or shapes differ.
    """
    if not len(heat) or not heat.shape == sounding.shape == silent.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (heat, sounding, silent))
        raise ValueError(f"heat and masks must have one shape (N, h, w) with N at least 1, not {shapes}")
    rows, sounding, silent = (x.flatten(1) for x in (heat, sounding, silent))
    hottest = rows.argmax(1, keepdim=True)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    iou = _iou(rows > (low + high) / 2, sounding)
    positive = rows.clamp_min(0)
    total = positive.sum(1).clamp_min(torch.finfo(rows.dtype).tiny)
    values = {
        "pointing": sounding.gather(1, hottest).float(),
        "pointing_silent": silent.gather(1, hottest).float(),
        "pointing_chance": sounding.float().mean(1),
        "pointing_silent_chance": silent.float().mean(1),
        "iou_half": iou,
        "ciou": (iou >= _HIT).float(),
        "heat_share": (positive * sounding).sum(1) / total,
        "heat_share_silent": (positive * silent).sum(1) / total,
    }
    return {
        **{name: value.mean().item() for name, value in values.items()},
        "ap": average_precision(rows, sounding),
        "ap_chance": sounding.float().mean().item(),
        "best_iou": best_threshold_iou(rows, sounding),
        "best_iou_chance": sounding.float().mean().item(),
    }


def time_alignment(profile: Tensor, loudness: Tensor, weight: Tensor) -> float:
    """Does heat come and go with the sound: mean over clips of the correlation in time; chance is 0.

    ::

        of each clip: Pearson's r of profile[t] and loudness[t] over the moments with weight
        0 for a clip in which either is constant

    Args:
        profile: (N, T) heat of each moment, such as the picture's highest.
        loudness: (N, T) the true loudness at the same moments.
        weight: (N, T) 1 for a moment of the clip, 0 for padding.
    """
    a, b = ((x - weighted_mean(x, weight)[:, None]) * weight for x in (profile.double(), loudness.double()))
    size = a.norm(dim=1) * b.norm(dim=1)
    flat = size < 1e-9
    return ((a * b).sum(1) / size.masked_fill(flat, 1.0)).masked_fill(flat, 0.0).mean().item()
