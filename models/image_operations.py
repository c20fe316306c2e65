"""Picture operations with settings of each sample's own, batched and on any device.

torchvision's take one setting for a whole batch, as a Python number; the tests hold these to what torchvision computes
picture by picture. Pictures are (B, C, H, W) in float32; colours are in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_CROP_TRIES = 10


def draw_crops(
    draws: Tensor, size: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Random crops as torchvision's ``RandomResizedCrop.get_params`` draws them.

    Area uniform in ``area``, aspect log-uniform in ``ratio``; the first of ten tries that fits is taken, and if none
    does, the middle of the picture in the nearest aspect.

    Args:
        draws: (B, 10, 4) uniform in [0, 1).
        size: H, W of the picture.
        area: Least and largest share of the picture's area.
        ratio: Least and largest width over height.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    height, width = size
    target = height * width * (area[0] + (area[1] - area[0]) * draws[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * draws[..., 1]).exp()
    w, h = (target * aspect).sqrt().round(), (target / aspect).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    top, left = (draws[..., 2] * (height - h + 1)).floor(), (draws[..., 3] * (width - w + 1)).floor()
    tries = torch.stack([top, left, h, w], dim=-1)
    first = fits.float().argmax(dim=1)
    chosen = tries.gather(1, first[:, None, None].expand(-1, 1, 4))[:, 0]
    # Numbers one by one: a tensor of them would be sent to the device, for which the host would wait.
    some, parts = fits.any(dim=1), zip(chosen.unbind(dim=1), _middle(size, ratio), strict=True)
    return torch.stack([torch.where(some, part, middle) for part, middle in parts], dim=1).long()


def _middle(size: tuple[int, int], ratio: tuple[float, float]) -> list[int]:
    height, width = size
    if width / height < ratio[0]:
        h, w = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return [(height - h) // 2, (width - w) // 2, h, w]


def resized_crop(pictures: Tensor, crops: Tensor) -> Tensor:
    """Each picture's crop, enlarged to the whole size, bilinearly.

    Args:
        pictures: (B, C, H, W).
        crops: (B, 4) top, left, height, width, within the picture.

    Returns:
        (B, C, H, W).
    """
    y, x = (
        _sources(crops[:, axis], crops[:, axis + 2], size) for axis, size in enumerate(pictures.shape[2:])
    )
    grid = torch.stack(
        [x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], -1
    )
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _sources(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size) where each output place looks along an axis, in grid_sample's units; never beyond the crop."""
    start, length = start.float()[:, None], length.float()[:, None]
    place = torch.arange(size, device=start.device) + 0.5
    source = (place * length / size - 0.5).clamp_min(0).minimum(length - 1) + start
    return (2 * source + 1) / size - 1


def to_grey(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), ITU-R 601 luma as in torchvision."""
    red, green, blue = pictures.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def jitter_colors(pictures: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each picture, in an order of its own.

    As torchvision's ``adjust_brightness``, ``…_contrast``, ``…_saturation`` and ``…_hue``. The first three are blends
    with black, with the mean luma, with the luma; hue is costly and is computed once, between the blends that come
    before it and those that come after.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        factors: (B, 4) of brightness, contrast and saturation (1 changes nothing), and the turn of the hue (0 changes
            nothing).
        order: (B, 4) int64, a permutation: which comes first, second, third, fourth.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    places = order.argsort(dim=1)
    before_hue = places[:, :3] < places[:, 3:]
    pictures = _blends(pictures, torch.where(before_hue, factors[:, :3], 1.0), order)
    pictures = _turn_hue(pictures, factors[:, 3])
    return _blends(pictures, torch.where(before_hue, 1.0, factors[:, :3]), order)


def _blends(pictures: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """The blends among (B, 4) ``order`` with (B, 3) factors."""
    for kind in order.unbind(dim=1):
        # At the place of the hue the factor is 1, so whatever it is blended with has no weight.
        factor = F.pad(factors, (0, 1), value=1.0).gather(1, kind[:, None])[:, :, None, None]
        grey = to_grey(pictures)
        mean = grey.mean(dim=(2, 3), keepdim=True)
        kind = kind[:, None, None, None]
        other = torch.where(kind == 2, grey, torch.where(kind == 1, mean, 0.0))
        pictures = (factor * pictures + (1 - factor) * other).clamp(0, 1)
    return pictures


def _turn_hue(pictures: Tensor, turn: Tensor) -> Tensor:
    """Adds (B,) ``turn``, in full turns, to the hue; through HSV as in torchvision."""
    red, green, blue = pictures.unbind(dim=1)
    value, chroma = pictures.amax(dim=1), pictures.amax(dim=1) - pictures.amin(dim=1)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sixths) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(pictures: Tensor, sigma: Tensor, radius: Tensor, max_radius: int) -> Tensor:
    """Blurs each picture by a normalised Gaussian of its own, edges reflected.

    As torchvision's ``gaussian_blur`` with ``kernel_size = 2 radius + 1``.

    Args:
        pictures: (B, C, H, W), wider and higher than ``max_radius``.
        sigma: (B,) in pixels; with ``radius`` 0 nothing changes.
        radius: (B,) how far the kernel reaches, at most ``max_radius``.
        max_radius: The largest of all.
    """
    place = torch.arange(-max_radius, max_radius + 1, device=pictures.device)
    kernel = (-0.5 * (place / sigma[:, None]).square()).exp() * (place.abs() <= radius[:, None])
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    for _ in range(2):  # rows, then columns
        padded = F.pad(pictures, (max_radius, max_radius, 0, 0), mode="reflect")
        windows = padded.unfold(3, 2 * max_radius + 1, 1)
        pictures = rearrange(torch.einsum("bchwk,bk->bchw", windows, kernel), "b c h w -> b c w h")
    return pictures
