"""Masks are pure functions of noise."""

import pytest
import torch

from models import CavMaeModelConfig, MaskConfig, Masker, MaskStrategy
from models.layers.masking import mask_from_noise

STRATEGIES = list(MaskStrategy)


def masker(strategy=MaskStrategy.random, ratio=0.75, **sizes):
    return Masker(CavMaeModelConfig(mask=MaskConfig(ratio, ratio, strategy), **sizes))


def noise(batch=16, length=512, seed=0):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed))


def test_keeps_the_lowest_noise_in_ascending_order():
    mask = mask_from_noise(torch.tensor([[0.5, 0.1, 0.9, 0.3]]), 2)
    assert mask.ids_keep.tolist() == [[1, 3]]
    assert mask.mask.tolist() == [[1, 0, 1, 0]]
    assert mask.ids_restore.tolist() == [[2, 0, 3, 1]]


def test_ids_restore_inverts_the_shuffle():
    values = noise()
    mask = masker().audio(values)
    shuffled = torch.empty_like(values).scatter_(1, mask.ids_restore, values)
    assert torch.equal(shuffled, values.sort(dim=1).values)
    assert torch.equal(shuffled.gather(1, mask.ids_restore), values)


def test_equal_noise_is_ordered_by_position():
    assert mask_from_noise(torch.zeros(1, 600), 3).ids_keep.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75, 0.9])
def test_every_sample_keeps_the_same_number(strategy, ratio):
    mask = masker(strategy, ratio).audio(noise())
    kept = int(512 * (1 - ratio))
    assert mask.ids_keep.shape == (16, kept)
    assert ((1 - mask.mask).sum(dim=1) == kept).all()
    assert (mask.mask.gather(1, mask.ids_keep) == 0).all()


def test_time_removes_whole_columns():
    mask = masker(MaskStrategy.time).audio(noise()).mask.reshape(-1, 8, 64)
    assert (mask == mask[:, :1]).all()
    assert (mask[:, 0].sum(dim=1) == 48).all()


def test_frequency_removes_whole_rows():
    mask = masker(MaskStrategy.frequency).audio(noise()).mask.reshape(-1, 8, 64)
    assert (mask == mask[:, :, :1]).all()
    assert (mask[:, :, 0].sum(dim=1) == 6).all()


def test_time_frequency_removes_columns_and_rows():
    # int(64 * 0.525) = 33 columns and int(8 * 0.525) = 4 rows leave 31 * 4 = 124 cells, and 4 more are kept.
    mask = masker(MaskStrategy.time_frequency).audio(noise()).mask.reshape(-1, 8, 64)
    kept_of_columns, kept_of_rows = (1 - mask).sum(1).sort(1).values, (1 - mask).sum(2).sort(1).values
    assert (kept_of_columns[:, :33].sum(1) <= 4).all()
    assert (kept_of_rows[:, :4].sum(1) <= 4).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_place_is_removed_equally_often(strategy):
    removed = masker(strategy).audio(noise(batch=2000)).mask.mean(dim=0)
    # Six standard deviations of a frequency of 0.75 in 2000.
    assert (removed - 0.75).abs().max() < 6 * (0.75 * 0.25 / 2000) ** 0.5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sample_has_its_mask_in_any_batch(strategy):
    values = noise()
    together = masker(strategy).audio(values)
    assert torch.equal(masker(strategy).audio(values[5:7]).ids_keep, together.ids_keep[5:7])


def test_visual_masks_are_random_whatever_the_audio_does():
    values = noise(length=196)
    _, visual = masker(MaskStrategy.time)(noise(), values)
    assert torch.equal(visual.ids_keep, values.argsort(dim=1)[:, :49])


def test_noise_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"audio noise has shape \(16, 100\).*512"):
        masker().audio(noise(length=100))
    with pytest.raises(ValueError, match="visual noise"):
        masker().visual(noise(length=100))
