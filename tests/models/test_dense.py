"""Dense similarities and regularisers against the definitions in their docstrings, and what they keep in memory."""

import math

import pytest
import torch
from torch import Tensor

from models.dense import contrast, regularizers
from models.dense.regularizers import NegativeSimilarity
from models.dense.scale import Calibration, Temperature
from models.dense.similarity import (
    BLOCK,
    SimilarityConfig,
    clip_volumes,
    reduce_pairs,
    similarities,
    split_heads,
)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


AUDIO, VISUAL = rows(5, 4, 6, 3), rows(3, 4, 7, 3, seed=1)  # 4 heads, 6 moments, 7 places
#: The fourth sound is silent throughout.
WEIGHT = torch.tensor(
    [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0] * 6, [0, 0, 0, 0, 0, 1]]
).float()


def naive(rule: str, s: Tensor, weight: Tensor) -> float:
    """One head's (P, T) volume by the rule's definition, in Python."""
    moments = [t for t in range(s.shape[1]) if weight[t]]
    if not moments:
        return 0.0
    peaks = [max(s[:, t].tolist()) for t in moments]
    max_mean = sum(peaks) / len(peaks)
    return {
        "misa": max_mean,
        "mima": max(peaks),
        "sisa": sum(s[:, t].mean().item() for t in moments) / len(moments),
        "paired": (max_mean + sum(max(row[moments].tolist()) for row in s) / len(s)) / 2,
    }[rule]


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("heads", ["max_elementwise", "max", "sum"])
@pytest.mark.parametrize("rule", ["misa", "mima", "sisa", "paired"])
def test_similarity_equals_its_definition(rule, heads, nonnegative):
    config = SimilarityConfig(rule, heads, nonnegative)
    found = similarities(AUDIO, VISUAL, WEIGHT, config, block=500)
    for a in range(5):
        for v in range(3):
            s = torch.stack([VISUAL[v, k] @ AUDIO[a, k].T for k in range(4)])
            s = s.clamp_min(0) if nonnegative else s
            of_heads = [naive(rule, head, WEIGHT[a]) for head in s]
            expected = {
                "max_elementwise": naive(rule, s.max(0).values, WEIGHT[a]),
                "max": max(of_heads),
                "sum": sum(of_heads),
            }[heads]
            assert found[a, v].item() == pytest.approx(expected, abs=1e-5), (a, v)


def test_blocks_change_neither_values_nor_gradients():
    def grads(block: int) -> list[Tensor]:
        audio, visual = AUDIO.clone().requires_grad_(), VISUAL.clone().requires_grad_()
        factor = torch.tensor(0.5, requires_grad=True)
        reductions = [SimilarityConfig().reduce, NegativeSimilarity(factor)]
        found = reduce_pairs(audio, visual, WEIGHT, reductions, block)
        sum(value.square().sum() for value in found).backward()  # type: ignore[union-attr]
        leaves = [x.grad for x in (audio, visual, factor) if x.grad is not None]
        return [*(value.detach() for value in found), *leaves]

    whole = grads(1 << 20)
    assert len(whole) == 5
    for block in (1, 170, 600):
        torch.testing.assert_close(grads(block), whole)


@pytest.mark.parametrize(
    ("clips", "heads", "moments", "places", "block"),
    [
        (8, 2, 20, 30, 5000),
        (16, 2, 20, 30, 5000),
        (48, 1, 49, 256, BLOCK),
    ],  # the last: a second, DINOv2 at 224 pixels
)
def test_memory_kept_for_backward_is_that_of_tokens_and_pairs(clips, heads, moments, places, block):
    audio = rows(clips, heads, moments, 4).requires_grad_()
    visual = rows(clips, heads, places, 4, seed=1).requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = similarities(audio, visual, torch.ones(clips, moments), SimilarityConfig(), block)
    tokens = 4 * (audio.numel() + visual.numel() + clips * moments)
    pairs = 4 * clips * clips
    assert sum(kept.values()) <= tokens + pairs
    assert found.requires_grad


def test_normalized_similarities_are_cosines():
    config = SimilarityConfig(normalize=True)
    audio, visual = config.prepare(AUDIO), config.prepare(VISUAL)
    expected = torch.nn.functional.cosine_similarity(AUDIO[0, 1, 2], VISUAL[2, 1, 5], dim=0)
    volume = clip_volumes(audio[:3], visual)
    torch.testing.assert_close(audio[0, 1, 2] @ visual[2, 1, 5], expected)
    assert volume.abs().max() <= 1 + 1e-6


def test_similarities_are_float32_under_autocast():
    exact = similarities(AUDIO, VISUAL, WEIGHT, SimilarityConfig())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarities(AUDIO, VISUAL, WEIGHT, SimilarityConfig()), exact)


def test_nonnegativity_equals_its_definition():
    audio, visual = AUDIO[:, :, 0], VISUAL[:, :, 1]
    values = [min(0.0, float(a[k] @ v[k])) ** 2 for a in audio for v in visual for k in range(4)]
    found = regularizers.nonnegativity(audio, visual)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_silence_equals_its_definition():
    tokens, weight = AUDIO[:, :, 0], torch.tensor([1.0, 0, 1, 0, 0])
    values = [
        abs(float(tokens[n, k] @ VISUAL[b, k, p]))
        for n in (0, 2)
        for b in range(3)
        for k in range(4)
        for p in range(7)
    ]
    found = regularizers.silence(tokens, weight, VISUAL)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert regularizers.silence(tokens, torch.zeros(5), VISUAL) == 0


def test_terms_of_the_volume_equal_their_definitions():
    volume = clip_volumes(AUDIO[:3], VISUAL)
    own, sound = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)), WEIGHT[:3]
    places, source = (rows(3, 7, seed=4) > 0).float(), torch.tensor([0, 1, 1])
    spliced = mixed = spread = changed = 0.0
    weights = others = 0.0
    for b in range(3):
        for k in range(4):
            for p in range(7):
                for t in range(6):
                    x = float(volume[b, k, p, t])
                    q, o = float((1 - own[b, t]) * sound[b, t]), float(1 - places[b, p])
                    spliced, weights = spliced + x * x * q, weights + q
                    mixed, others = mixed + (x * o) ** 2, others + o
                    changed += 0.0 if t == 5 else (float(volume[b, k, p, t + 1]) - x) ** 2
    for b in range(3):
        wrong = (2, 3) if source[b] == 0 else (0, 1)
        spread += volume[b, wrong].sum(0).square().mean().item() / 3
    together = [
        (volume[:, i].abs() * volume[:, j].abs()).mean().item() for i in range(4) for j in range(i + 1, 4)
    ]
    expected = {
        "spliced": (regularizers.spliced_audio(volume, own, sound), spliced / weights),
        "mixed": (regularizers.mixed_picture(volume, places), mixed / others),
        "variation": (regularizers.total_variation(volume), changed / (3 * 4 * 7 * 5)),
        "disentangling": (regularizers.disentangling(volume, source), spread),
        "specialization": (regularizers.specialization(volume), sum(together) / 6),
    }
    for name, (found, value) in expected.items():
        assert found.item() == pytest.approx(value, rel=1e-5), name


def test_terms_with_nothing_to_say_are_zero():
    volume = clip_volumes(AUDIO[:3, :1, :1], VISUAL[:, :1])  # one head, one moment
    ones = torch.ones(3, 1)
    assert regularizers.specialization(volume) == 0
    assert regularizers.total_variation(volume) == 0
    assert regularizers.spliced_audio(volume, ones, ones) == 0
    assert regularizers.mixed_picture(volume, torch.ones(3, 7)) == 0


def test_negative_similarity_equals_its_definition():
    (found,) = reduce_pairs(AUDIO, VISUAL, WEIGHT, [NegativeSimilarity(torch.tensor(0.5), floor=-0.4)])
    s = 0.5 * torch.einsum("kpc,ktc->kpt", VISUAL[1], AUDIO[2])[..., [1, 3, 4]]
    assert found[2, 1].item() == pytest.approx(s.clamp(-0.4, 0).square().mean().item(), rel=1e-5)
    assert (found[3] == 0).all()


def test_scales_hold_their_range():
    calibration = Calibration(2.0)
    assert calibration.penalty() == 0
    with torch.no_grad():
        calibration.log_w.fill_(math.log(0.5))
    assert calibration.penalty().item() == pytest.approx(math.log(4) ** 2, rel=1e-5)
    logits = calibration(rows(4, 4))
    assert logits.mean().item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        calibration.log_w.fill_(50.0)
    assert calibration.factor().item() == 100
    for value, expected in ((2.0, math.log(2.3 / 2) ** 4), (3.0, 0.0), (5.0, math.log(5 / 4) ** 4)):
        assert Temperature(value).penalty().item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_contrast_without_leak_is_cross_entropy_both_ways():
    logits, labels = rows(6, 6), torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, labels)
        + torch.nn.functional.cross_entropy(logits.T, labels)
    ) / 2
    torch.testing.assert_close(contrast.nce(logits), expected)


def test_wrong_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"similarity\.rule is 'max'"):
        SimilarityConfig(rule="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="10 can't be shared among 3 heads"):
        split_heads(rows(1, 2, 10), 3)
    with pytest.raises(ValueError, match="even number of heads"):
        regularizers.disentangling(rows(1, 3, 2, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="above 0"):
        Temperature(0.0)
    with pytest.raises(ValueError, match="above 0"):
        Calibration(-1.0)
