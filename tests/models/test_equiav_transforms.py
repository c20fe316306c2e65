"""What EquiAV's transformations do, and that their descriptions say exactly that."""

from dataclasses import fields, replace

import pytest
import torch

from models.equiav.transforms import (
    AudioTransform,
    TransformConfig,
    VisualTransform,
    draw_centroids,
)
from models.sample_random import uniform

SEEDS = torch.arange(300) * 7919 - 10
NEVER = TransformConfig(1.0, 0, 0.1875, 0.375, 0, 0, 0, 0)
ALWAYS = TransformConfig(0.08, 1, 0.1875, 0.375, 1, 1, 1, 1)
AUDIO, VISUAL = (96, 32), (24, 24)


def fbanks(count=300):
    return uniform(torch.arange(count), 1, AUDIO) * 4 - 2


def pictures(count=300):
    return uniform(torch.arange(count), 2, (3, *VISUAL))


@pytest.mark.parametrize("config", [TransformConfig(), ALWAYS, NEVER])
def test_descriptions_are_in_zero_to_one(config):
    audio = AudioTransform.draw(SEEDS, AUDIO, config).describe()
    visual = VisualTransform.draw(SEEDS, VISUAL, config).describe()
    assert audio.shape == (300, 24)
    assert visual.shape == (300, 18)
    for x in (audio, visual):
        assert x.min() >= 0
        assert x.max() <= 1


def test_what_is_not_applied_is_described_by_zeros():
    audio = AudioTransform.draw(SEEDS, AUDIO, NEVER).describe()
    visual = VisualTransform.draw(SEEDS, VISUAL, NEVER).describe()
    # The crop is always applied; here it is nearly everything.
    assert not audio[:, [*range(7), *range(12, 24)]].any()
    assert not visual[:, 5:].any()


def test_probabilities():
    audio = AudioTransform.draw(SEEDS, AUDIO, TransformConfig()).describe()
    visual = VisualTransform.draw(SEEDS, VISUAL, TransformConfig()).describe()
    for share, flags in ((0.8, audio[:, [0, 5, 12]]), (0.5, audio[:, [21, 23]]), (0.8, visual[:, 5])):
        assert ((flags.mean(0) - share).abs() < 0.1).all()
    for share, flags in ((0.5, visual[:, [14, 16]]), (0.2, visual[:, 17])):
        assert ((flags.mean(0) - share).abs() < 0.1).all()
    assert torch.equal(audio[:, 0], audio[:, 5])  # masks and roll go together


def untouched(transform, size):
    """The transform with the whole input as its crop."""
    whole = torch.tensor([0, 0, *size]).expand(len(transform.crop), -1)
    return replace(transform, crop=whole)


def test_nothing_applied_changes_nothing():
    audio, visual = AudioTransform.draw(SEEDS, AUDIO, NEVER), VisualTransform.draw(SEEDS, VISUAL, NEVER)
    torch.testing.assert_close(untouched(audio, AUDIO).apply(fbanks()), fbanks(), atol=1e-4, rtol=0)
    torch.testing.assert_close(untouched(visual, VISUAL).apply(pictures()), pictures(), atol=1e-4, rtol=0)


def test_masks_and_roll_are_where_the_description_says():
    config = replace(NEVER, spec_probability=1)
    transform = untouched(AudioTransform.draw(SEEDS, AUDIO, config), AUDIO)
    x, description = fbanks(), transform.describe()
    found = transform.apply(x)
    for i in range(40):
        t0, t1, f0, f1 = (description[i, 1:5] * torch.tensor([96, 96, 32, 32])).round().long().tolist()
        expected = x[i].clone()
        expected[t0:t1], expected[:, f0:f1] = 0, 0
        expected = expected.roll(round(description[i, 6].item() * 96), dims=0)
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)
    widths = (description[:, [2, 4]] - description[:, [1, 3]]) * torch.tensor([96, 32])
    assert widths.max(0).values.round().tolist() == [17, 11]  # below 18 and 12
    assert description[:, 6].unique().numel() > 80


def test_jitter_blur_and_flip_of_a_spectrogram():
    config = replace(NEVER, jitter_probability=1)
    transform = untouched(AudioTransform.draw(SEEDS, AUDIO, config), AUDIO)
    x, description = fbanks(), transform.describe()
    brightness, contrast = (0.6 + 0.8 * description[:, 17:19]).T[:, :, None, None]
    mean = x.mean(dim=(1, 2), keepdim=True)
    expected = brightness * (contrast * x + (1 - contrast) * mean)
    torch.testing.assert_close(transform.apply(x), expected, atol=1e-4, rtol=0)
    assert transform.apply(x).min() < 0 < 1 < transform.apply(x).max()  # nothing is clamped
    flip = untouched(AudioTransform.draw(SEEDS, AUDIO, replace(NEVER, flip_probability=1)), AUDIO)
    torch.testing.assert_close(flip.apply(x), x.flip(2), atol=1e-4, rtol=0)
    blur = untouched(AudioTransform.draw(SEEDS, AUDIO, replace(NEVER, blur_probability=1)), AUDIO)
    assert (blur.apply(x).std(dim=(1, 2)) <= x.std(dim=(1, 2)) + 1e-5).all()


def test_flip_and_grey_of_a_picture():
    x = pictures()
    flip = untouched(VisualTransform.draw(SEEDS, VISUAL, replace(NEVER, flip_probability=1)), VISUAL)
    torch.testing.assert_close(flip.apply(x), x.flip(3), atol=1e-4, rtol=0)
    grey = untouched(VisualTransform.draw(SEEDS, VISUAL, replace(NEVER, grey_probability=1)), VISUAL)
    out = grey.apply(x)
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.shape == x.shape


def test_the_order_of_the_jitter_is_described():
    transform = VisualTransform.draw(SEEDS, VISUAL, ALWAYS)
    assert torch.equal((transform.describe()[:, 6:10] * 3).round().long(), transform.order)
    assert transform.order.unique(dim=0).shape == (24, 4)


def test_a_sample_is_transformed_alike_in_any_batch():
    for kind, size, x in ((AudioTransform, AUDIO, fbanks()), (VisualTransform, VISUAL, pictures())):
        together = kind.draw(SEEDS, size, TransformConfig())
        alone = kind.draw(SEEDS[7:8], size, TransformConfig())
        for f in fields(kind):
            if f.name != "size":
                assert torch.equal(getattr(together, f.name)[7:8], getattr(alone, f.name)), f.name
        torch.testing.assert_close(together.apply(x)[7:8], alone.apply(x[7:8]))


def test_centroids_belong_to_the_sample():
    config = TransformConfig()
    audio, visual = draw_centroids(SEEDS[:5], 6, AUDIO, VISUAL, config)
    assert audio.shape == (5, 6, 24)
    assert visual.shape == (5, 6, 18)
    alone = draw_centroids(SEEDS[2:3], 6, AUDIO, VISUAL, config)
    assert torch.equal(audio[2:3], alone[0])
    assert torch.equal(visual[2:3], alone[1])
    assert audio.flatten(0, 1).unique(dim=0).shape[0] == 30
    # None of them is the transformation that the sample itself goes through.
    assert not (audio[0] == AudioTransform.draw(SEEDS[:1], AUDIO, config).describe()).all(1).any()


@pytest.mark.parametrize(
    ("name", "value"), [("min_crop", 0), ("min_crop", 1.2), ("blur_probability", -0.1), ("max_time_mask", 2)]
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(ValueError, match=rf"transforms\.{name} is {value}"):
        TransformConfig(**{name: value})
