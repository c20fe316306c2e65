"""Batched picture operations against torchvision's, picture by picture."""

import itertools
import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import RandomResizedCrop

from models.image_operations import draw_crops, gaussian_blur, jitter_colors, resized_crop
from models.sample_random import uniform


def pictures(count, height=20, width=20, channels=3):
    return uniform(torch.arange(count), 1, (channels, height, width))


@pytest.mark.parametrize("size", [(20, 20), (12, 32)])
def test_crops_are_torchvisions(size):
    x = pictures(8, *size)
    crops = draw_crops(uniform(torch.arange(8), 2, (10, 4)), size, (0.08, 1.0), (3 / 4, 4 / 3))
    crops[0] = torch.tensor([0, 0, *size])
    found = resized_crop(x, crops)
    for picture, crop, result in zip(x, crops.tolist(), found, strict=True):
        expected = tv.resized_crop(picture, *crop, size=list(size), antialias=False)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], x[0])


@pytest.mark.parametrize(("size", "ratio"), [((64, 64), (3 / 4, 4 / 3)), ((96, 12), (0.1, 0.1875))])
def test_drawn_crops_have_torchvisions_distribution(size, ratio):
    ours = draw_crops(uniform(torch.arange(4000), 2, (10, 4)), size, (0.08, 1.0), ratio).double()
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    theirs = [RandomResizedCrop.get_params(blank, [0.08, 1.0], list(ratio)) for _ in range(4000)]
    theirs = torch.tensor(theirs, dtype=torch.float64)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()
    for quantile in (0.1, 0.5, 0.9):
        gap = (ours.quantile(quantile, dim=0) - theirs.quantile(quantile, dim=0)).abs()
        assert (gap <= 0.04 * torch.tensor([*size, *size])).all(), quantile


def test_crops_that_never_fit_are_the_middle():
    draws = torch.zeros(1, 10, 4)
    draws[..., 0], draws[..., 1] = 1 - 2**-24, 1 - 2**-24
    for size, middle in (((10, 40), [0, 10, 10, 20]), ((40, 10), [17, 0, 5, 10])):
        assert draw_crops(draws, size, (0.9, 1.0), (2.0, 2.0)).tolist() == [middle]


def test_jitter_is_torchvisions_in_every_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    x = pictures(len(orders)) * 1.2 - 0.1
    x = x.clamp(0, 1)
    x[3] = 0.4  # grey: no hue
    x[4, :, 2:9] = torch.tensor([1.0, 1.0, 0.0])[:, None, None]  # two channels are largest
    draws = uniform(torch.arange(len(orders)), 3, (4,))
    factors = torch.cat([0.6 + 0.8 * draws[:, :3], 0.2 * draws[:, 3:] - 0.1], dim=1)
    adjust = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for picture, order, factor, result in zip(
        x, orders, factors, jitter_colors(x, factors, orders), strict=True
    ):
        for kind in order.tolist():
            picture = adjust[kind](picture, float(factor[kind]))
        torch.testing.assert_close(result, picture, atol=1e-5, rtol=0)


def test_blur_is_torchvisions():
    x = pictures(5, 16, 24)
    sigma = torch.tensor([0.1, 0.6, 1.0, 1.7, 2.0])
    radius = torch.tensor([1, 1, 3, 6, 0])
    for picture, s, r, result in zip(x, sigma, radius, gaussian_blur(x, sigma, radius, 6), strict=True):
        size = [2 * int(r) + 1] * 2
        expected = tv.gaussian_blur(picture, size, [float(s)] * 2) if r else picture
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_a_picture_is_the_same_in_any_batch():
    seeds = torch.tensor([5, 9, -3])
    crops = draw_crops(uniform(seeds, 2, (10, 4)), (20, 20), (0.08, 1.0), (3 / 4, 4 / 3))
    alone = draw_crops(uniform(seeds[1:2], 2, (10, 4)), (20, 20), (0.08, 1.0), (3 / 4, 4 / 3))
    assert crops[1].tolist() == alone[0].tolist()
    x = pictures(3)
    assert torch.equal(resized_crop(x, crops)[1], resized_crop(x[1:2], alone)[0])
    assert math.prod(alone[0, 2:].tolist()) >= 0.07 * 400
