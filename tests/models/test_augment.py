"""Augmentation is the published one, from each sample's seed."""

import torch

from models import Stream, add_noise, augment_fbank, roll_time, uniform

SEEDS = torch.arange(400) * 7 + 3


def test_noise_is_uniform_at_a_level_of_its_own():
    noise = add_noise(torch.zeros(400, 20, 16), SEEDS)
    level = uniform(SEEDS, Stream.FBANK_NOISE_LEVEL) / 10
    assert (noise >= 0).all()
    assert (noise.amax(dim=(1, 2)) <= level).all()
    assert (noise.amax(dim=(1, 2)) > 0.9 * level).all()
    torch.testing.assert_close(noise.mean(), torch.tensor(0.025), atol=0.002, rtol=0)


def test_roll_is_a_roll_of_whole_frames_over_the_whole_range():
    fbank = torch.arange(400 * 8 * 2).reshape(400, 8, 2).float()
    rolled = roll_time(fbank, SEEDS)
    shifts = (uniform(SEEDS, Stream.FBANK_ROLL) * 16).long() - 8
    for sample, result, shift in zip(fbank, rolled, shifts.tolist(), strict=True):
        assert torch.equal(result, torch.roll(sample, shift, 0))
    assert set(shifts.tolist()) == set(range(-8, 8))


def test_a_sample_is_augmented_alike_in_any_batch():
    fbank = torch.randn(400, 8, 4)
    together = augment_fbank(fbank, SEEDS)
    assert torch.equal(augment_fbank(fbank[5:9], SEEDS[5:9]), together[5:9])
    assert not torch.equal(together, fbank)
