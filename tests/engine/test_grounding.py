"""Heatmaps, segmentation and retrieval scores: DenseAV's numbers, definitions, chance."""

import json
import os
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from engine.evaluation.grounding import (
    average_precision,
    best_threshold_iou,
    grounding_scores,
    heatmaps,
    scaled_to_unit,
    segmentation_by_class,
    time_alignment,
    to_pixels,
)
from engine.evaluation.retrieval import retrieval_metrics, similarity_metrics, similarity_retrieval
from models.dense.similarity import SimilarityConfig, clip_volumes, split_heads


@pytest.fixture(scope="module")
def reference():
    default = Path(__file__).parents[1] / "reference" / "denseav_a"
    path = os.environ.get("EARSIGHT_REFERENCE_DENSEAV", str(default))
    return load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())


def test_heatmaps_and_segmentation_are_denseavs(reference):
    tensors, facts = reference
    config, expect = facts["config"], facts["expect"]["segmentation"]
    audio = split_heads(rearrange(tensors["input.audio_feats"], "b c t -> b t c"), config["heads"])
    visual = split_heads(rearrange(tensors["input.image_feats"], "b c h w -> b (h w) c"), config["heads"])
    sound = tensors["input.audio_mask"].float()
    volume = SimilarityConfig(nonnegative=config["nonneg_sim"]).join_heads(clip_volumes(audio, visual))
    segmentation = tensors["input.segmentation"]
    size = tuple(segmentation.shape[1:])
    grid_heat = heatmaps(volume, sound, (config["height"], config["width"]))
    heat = to_pixels(scaled_to_unit(grid_heat), size)
    torch.testing.assert_close(heat, tensors["expect.heatmap"], atol=1e-4, rtol=0)
    prompted = tensors["input.prompted_class"]
    truth = segmentation == prompted[:, None, None]
    # Pixels at an edge are equal but for the last bit, in which any two programs order them differently.
    for given, tolerance in ((tensors["expect.heatmap"], 1e-6), (heat, 5e-4)):
        found = segmentation_by_class(given, truth, prompted)
        assert list(found) == expect["classes"]
        for name in ("ap", "iou"):
            values = [scores[name] for scores in found.values()]
            assert values == pytest.approx(expect[name], abs=tolerance)
            assert sum(values) / len(values) == pytest.approx(expect[f"mean_{name}"], abs=tolerance)


def test_retrieval_by_similarity_is_denseavs(reference):
    tensors, facts = reference
    found = similarity_retrieval(tensors["input.retrieval_similarity"])
    for ours, theirs in (("a2v", "I"), ("v2a", "A")):
        for k in (1, 5, 10):
            expected = facts["expect"]["retrieval"][f"{theirs}_r{k}"]
            assert found[f"retrieval_{ours}_r{k}"] == pytest.approx(expected, abs=1e-6)


def test_retrieval_by_similarity_is_that_of_the_vectors():
    generator = torch.Generator().manual_seed(0)
    audio, visual = (torch.nn.functional.normalize(torch.randn(40, 6, generator=generator)) for _ in range(2))
    assert similarity_metrics(audio @ visual.T) == retrieval_metrics(audio, visual)
    scaled = similarity_metrics(1e4 * audio @ visual.T)
    assert scaled == retrieval_metrics(audio, visual)
    constant = similarity_retrieval(torch.full((40, 40), 7.3))
    assert constant["retrieval_a2v_r1"] == constant["retrieval_chance_r1"] == 1 / 40
    with pytest.raises(ValueError, match=r"\(N, N\), not \(4, 5\)"):
        similarity_metrics(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="not finite"):
        similarity_metrics(torch.full((2, 2), torch.nan))


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heat of three 4x4 pictures; what sounds is the left upper quarter, what is silent the right lower one."""
    sounding, silent = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    sounding[:, :2, :2], silent[:, 2:, 2:] = True, True
    heat = torch.full((3, 4, 4), -1.0)
    heat[0, :2, :2] = 1.0  # exactly what sounds
    heat[1, 2:, 2:], heat[1, 0, 0] = 3.0, 1.5  # mostly what is silent
    return heat, sounding, silent  # the third has no positive heat; its hottest pixel is its first


def test_scores_equal_their_definitions():
    heat, sounding, silent = scene()
    found = grounding_scores(heat, sounding, silent)
    assert found["pointing"] == pytest.approx(2 / 3)
    assert found["pointing_silent"] == pytest.approx(1 / 3)
    assert found["pointing_chance"] == found["pointing_silent_chance"] == found["ap_chance"] == 0.25
    assert found["iou_half"] == pytest.approx((1 + 1 / 8 + 0) / 3)  # 1 of 5 hot pixels, 4 true: 1 of 8
    assert found["ciou"] == pytest.approx(1 / 3)
    assert found["heat_share"] == pytest.approx((1 + 1.5 / 13.5 + 0) / 3)
    assert found["heat_share_silent"] == pytest.approx((0 + 12 / 13.5 + 0) / 3)


def test_heat_on_nothing_in_particular_scores_chance():
    generator = torch.Generator().manual_seed(0)
    sounding = torch.zeros(400, 8, 8, dtype=torch.bool)
    sounding[:, :4, :4] = True
    heat = torch.rand(400, 8, 8, generator=generator)
    found = grounding_scores(heat, sounding, sounding.flip(1))
    for name in ("pointing", "pointing_silent", "heat_share", "ap", "best_iou"):
        assert found[name] == pytest.approx(0.25, abs=0.07), name


def test_fixed_threshold_iou_stays_below_the_oracles():
    heat, sounding, _ = scene()
    assert best_threshold_iou(heat[:1], sounding[:1]) == 1
    assert average_precision(heat[:1], sounding[:1]) == 1
    # One hot pixel beside a warm object: half the range misses the object, the oracle's threshold does not.
    heat[0, 3, 3] = 5.0
    assert grounding_scores(heat[:1], sounding[:1], sounding[:1])["iou_half"] == 0
    assert best_threshold_iou(heat[:1], sounding[:1]) == pytest.approx(4 / 5)


def test_heat_of_a_clip_depends_on_the_clip_alone():
    generator = torch.Generator().manual_seed(0)
    volume, weight = torch.randn(3, 6, 5, generator=generator), torch.ones(3, 5)
    weight[1, 3:] = 0
    weight[2] = 0
    heat = heatmaps(volume, weight, (2, 3))
    torch.testing.assert_close(heat[1:2], heatmaps(volume[1:2, :, :3], weight[1:2, :3], (2, 3)))
    assert heat[0, 1, 2] == pytest.approx(volume[0, 5].mean().item())
    assert (heat[2] == 0).all()


def test_alignment_in_time():
    loudness = torch.tensor([[0.1, 1.0, 0.4, 0.2, 9.0], [0.3, 0.3, 0.3, 0.3, 0.3]])
    weight = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).float()
    profile = 2 * loudness - 3
    profile[0, 4] = 0  # padding
    assert time_alignment(profile[:1], loudness[:1], weight[:1]) == pytest.approx(1)
    assert time_alignment(-profile[:1], loudness[:1], weight[:1]) == pytest.approx(-1)
    assert time_alignment(profile, loudness, weight) == pytest.approx(0.5)  # the second is constant: 0


def test_scores_of_nothing_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        grounding_scores(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4).bool(), torch.zeros(0, 4, 4).bool())
