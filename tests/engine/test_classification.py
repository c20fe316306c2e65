"""The classification objective: losses, mixing, masking, what is trained, and at which rate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchaudio
from support.training import make_batch, small_model_config

from datasets.batch import AVBatch
from datasets.loading.sampling import MixedBatch
from engine.objectives.classification import (
    Classification,
    ClassificationConfig,
    LossName,
    Modalities,
    bce_loss,
    cross_entropy_loss,
    smooth_targets,
)
from models import AudioVisualClassifier, FbankConfig, mask_bands, mix_waveforms

CLASSES = 5


def objective(**settings: Any) -> Classification:
    torch.manual_seed(0)
    config = ClassificationConfig(**settings)
    model_config = small_model_config()
    fbank = FbankConfig(target_length=model_config.audio_length, num_mel_bins=model_config.num_mel_bins)
    model = AudioVisualClassifier(model_config, CLASSES, pool_separate=config.pool_separate)
    return Classification(model, fbank, config)


def batch(rows: list[int], **changes: Any) -> AVBatch:
    labels = torch.eye(CLASSES)[[row % CLASSES for row in rows]]
    return replace(make_batch(rows), labels=labels, **changes)


def mixed(rows: list[int], others: list[int], weights: list[float]) -> MixedBatch:
    return MixedBatch(**vars(batch(rows)), weights=torch.tensor(weights), partners=batch(others))


def test_losses_are_their_definitions():
    logits, targets = torch.randn(4, CLASSES), torch.rand(4, CLASSES)
    p = logits.sigmoid()
    bce = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(bce_loss(logits, targets), bce)
    cross_entropy = -(targets * logits.softmax(1).log()).sum(1).mean()
    torch.testing.assert_close(cross_entropy_loss(logits, targets), cross_entropy)
    smooth = smooth_targets(torch.eye(CLASSES), 0.1)
    assert smooth.diagonal().tolist() == pytest.approx([0.92] * CLASSES)
    torch.testing.assert_close(smooth.sum(1), torch.ones(CLASSES))


@pytest.mark.parametrize(
    "settings",
    [
        {"modalities": Modalities.audio},
        {"modalities": Modalities.visual},
        {"modalities": Modalities.audio_visual},
        {"pool_separate": True, "loss": LossName.cross_entropy},
        {"freeze_encoder": True},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_every_trained_weight_has_a_gradient(settings):
    task = objective(**settings)
    given = batch([1, 2, 3])
    if not task.config.visual:
        given = replace(given, frames=None)
    if not task.config.audio:
        given = replace(given, waveform=None, num_samples=None)
    values = task(given)
    values["loss"].backward()
    assert not values["accuracy"].requires_grad
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in task.model.named_parameters() if p.grad is not None}
    assert {"norm.weight", "norm.bias", "head.weight", "head.bias"} <= trained
    encoder = {name.split(".")[1] for name in trained if name.startswith("encoder.")}
    if task.config.freeze_encoder:
        assert not encoder
    elif task.config.modalities is Modalities.audio_visual:
        assert {"audio", "visual", "joint_blocks"} <= encoder
        separate = "encoder.norm.audio.weight" in trained
        assert separate == task.config.pool_separate
    else:
        assert encoder & {"audio", "visual"} == {str(task.config.modalities)}
        assert "encoder.norm.joint.weight" not in trained


def test_mixing_is_the_weighted_sum():
    task = objective(modalities=Modalities.audio_visual)
    weights = [1.0, 0.3, 0.6]
    given = mixed([1, 2, 3], [1, 7, 9], weights)
    fbank, frames = task.inputs(given)
    first, second = (task.inputs(batch(rows)) for rows in ([1, 2, 3], [1, 7, 9]))
    assert frames is not None
    assert first[1] is not None
    assert second[1] is not None
    share = torch.tensor(weights)[:, None, None, None, None]
    torch.testing.assert_close(frames, share * first[1] + (1 - share) * second[1])
    assert fbank is not None
    assert first[0] is not None
    torch.testing.assert_close(fbank[0], first[0][0])
    assert not torch.allclose(fbank[1], first[0][1], atol=0.1)
    logits = task.logits(fbank, frames)
    targets = torch.eye(CLASSES)[[1, 2, 3]] * torch.tensor(weights)[:, None]
    targets += torch.eye(CLASSES)[[1, 2, 4]] * (1 - torch.tensor(weights)[:, None])
    torch.testing.assert_close(task(given)["loss"], bce_loss(logits, targets))


def test_mixed_waveforms_have_their_means_taken_off():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-9000, 12000, (3, 50), generator=generator).short() for _ in range(2))
    lengths, others = torch.tensor([50, 30, 40]), torch.tensor([50, 50, 20])
    for waveform, length in ((x, lengths), (y, others)):
        waveform[torch.arange(50) >= length[:, None]] = 0
    found = mix_waveforms(x, lengths, y, others, torch.tensor([0.25, 0.5, 1.0]))
    for i, (own, share) in enumerate(zip(lengths.tolist(), (0.25, 0.5, 1.0), strict=True)):
        a, b = x[i, :own].double() / 32768, y[i, : int(others[i])].double() / 32768
        expected = share * (a - a.mean())
        expected[: len(b)] += (1 - share) * (b - b.mean())[:own]
        torch.testing.assert_close(found[i, :own].double(), expected, atol=1e-7, rtol=0)


def test_masked_bands_have_the_widths_of_torchaudios():
    seeds = torch.arange(4000) * 11 + 5
    masked = mask_bands(torch.zeros(4000, 40, 16), seeds, 6, 0, 1.0)
    assert ((masked == masked[:, :1]).all(2)).all()
    widths = masked[:, 0].sum(1)
    reference = torchaudio.transforms.FrequencyMasking(6)
    torch.manual_seed(0)
    theirs = torch.stack([reference(torch.zeros(1, 16, 1), mask_value=1.0).sum() for _ in range(4000)])
    for width in range(6):
        share, other = (widths == width).float().mean(), (theirs == width).float().mean()
        assert abs(share - other) < 0.03, width
    assert widths.max() == 5
    in_time = mask_bands(torch.zeros(4000, 40, 16), seeds, 0, 30, 1.0)
    assert (in_time == in_time[:, :, :1]).all()
    assert in_time[:, :, 0].sum(1).max() == 29
    # The last frame is never masked, nor is it by torchaudio.
    assert in_time[:, :-1, 0].mean(0).min() > 0.02
    assert torch.equal(mask_bands(torch.ones(4000, 40, 16), seeds, 0, 0, 0.0), torch.ones(4000, 40, 16))
    wide = mask_bands(torch.zeros(50, 8, 4), seeds[:50], 100, 100, 1.0)
    assert wide.shape == (50, 8, 4)


def test_augmentation_is_the_clips_own():
    task = objective(freq_mask=8, time_mask=8, noise_and_roll=True, label_smoothing=0.1)
    together = task(batch([1, 2, 3, 4]))["loss"]
    apart = torch.stack([task(batch(rows))["loss"] for rows in ([1, 2], [3, 4])]).mean()
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(
        together, objective(label_smoothing=0.1)(batch([1, 2, 3, 4]))["loss"], atol=1e-6
    )


def test_rates_of_head_and_layers():
    plain = objective(head_lr_ratio=20.0).lr_groups()
    assert set(plain) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert {group.scale for group in plain.values()} == {20.0}
    task = objective(head_lr_ratio=20.0, layer_decay=0.5)
    groups = task.lr_groups()
    assert set(groups) == {name for name, _ in task.model.named_parameters()}
    scales = {
        "encoder.audio.patch_embed.weight": 0.125,
        "encoder.visual.modality_embed": 0.125,
        "encoder.audio.blocks.0.attn.qkv.weight": 0.25,
        "encoder.joint_blocks.0.mlp.fc1.bias": 0.5,
        "encoder.norm.joint.weight": 1.0,
        "head.weight": 20.0,
    }
    assert {name: groups[name].scale for name in scales} == scales


def test_one_modality_of_two_and_scores():
    task = objective(loss=LossName.cross_entropy).eval()
    fbank, frames = task.inputs(batch([1, 2]))
    torch.testing.assert_close(task.probabilities(task.logits(fbank, None)).sum(1), torch.ones(2))
    alone = objective(loss=LossName.cross_entropy, modalities=Modalities.audio).eval()
    for each in (task, alone):
        bias = each.model.get_parameter("encoder.norm.joint.bias")
        torch.nn.init.normal_(bias, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(task.logits(fbank, None), alone.logits(fbank, None))
    scores = objective().probabilities(task.logits(fbank, frames))
    assert ((scores > 0) & (scores < 1)).all()


def test_settings_that_can_not_be():
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"head_lr_ratio": 0}, "objective.head_lr_ratio is 0"),
        ({"layer_decay": 1.5}, "objective.layer_decay is 1.5"),
        ({"label_smoothing": 1.0}, "objective.label_smoothing is 1.0"),
        ({"freq_mask": -1}, "objective.freq_mask is -1"),
        ({"modalities": Modalities.audio, "pool_separate": True}, "pool_separate needs objective.modalities"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            ClassificationConfig(**settings)
