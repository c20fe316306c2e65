"""Retrieval over several moments of each clip: the four published scores, in blocks, with defined ranks."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import engine.evaluation.retrieval
from engine.evaluation.pair_scores import PAIR_SCORES, pair_score
from engine.evaluation.retrieval import cross_modal_retrieval, retrieval_metrics

DEFAULT = Path(__file__).parents[1] / "reference" / "cav_mae_sync_a"
REFERENCE = Path(os.environ.get("EARSIGHT_REFERENCE_CAV_MAE_SYNC", DEFAULT))
WAYS = {"audio_to_visual": ("audio", "visual"), "visual_to_audio": ("visual", "audio")}


@pytest.fixture(scope="module")
def tensors():
    return load_file(f"{REFERENCE}.safetensors")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PAIR_SCORES)
def test_equal_to_the_published_scores(tensors, name, way):
    queries, gallery = (tensors[f"input.retrieval_{modality}"] for modality in WAYS[way])
    similarity = pair_score(name).similarity(queries, gallery)
    torch.testing.assert_close(similarity, tensors[f"expect.retrieval.{name}.{way}"], atol=1e-5, rtol=0)
    expected = json.loads(Path(f"{REFERENCE}.json").read_text())["retrieval"][f"{name}.{way}"]
    values = retrieval_metrics(queries, gallery, score=name)
    assert [values["r1"], values["r5"], values["r10"], values["median_rank"]] == pytest.approx(
        [expected["R1"], expected["R5"], expected["R10"], expected["MR"]]
    )


@pytest.mark.parametrize("name", PAIR_SCORES)
def test_blocks_change_nothing(tensors, name, monkeypatch):
    pair = tensors["input.retrieval_audio"], tensors["input.retrieval_visual"]
    labels = F.one_hot(torch.arange(len(pair[0])) % 3).float()
    whole = cross_modal_retrieval(*pair, labels, name)
    monkeypatch.setattr(engine.evaluation.retrieval, "_BLOCK", 4 * 14)
    assert cross_modal_retrieval(*pair, labels, name) == pytest.approx(whole)


@pytest.mark.parametrize("name", PAIR_SCORES)
def test_ties_have_ranks(name):
    """Two clips of the same sound: the recall of each is that of a coin, where the published code miscounts."""
    gallery = torch.eye(4)[:, None].repeat(1, 3, 1)
    queries = gallery.clone()
    gallery[1] = gallery[0]
    values = retrieval_metrics(queries, gallery, score=name)
    # Query 0 finds its match tied with clip 1; query 1 finds nothing, all four tied at 0.
    assert values["r1"] == pytest.approx((0.5 + 0.25 + 1 + 1) / 4)
    same = torch.ones(4, 3, 5)
    assert retrieval_metrics(same, same, score=name)["r1"] == pytest.approx(0.25)


def test_one_moment_is_the_cosine():
    generator = torch.Generator().manual_seed(0)
    audio, visual = (torch.randn(20, 8, generator=generator) for _ in range(2))
    values = retrieval_metrics(audio, visual)
    for name in PAIR_SCORES:
        assert retrieval_metrics(audio, visual, score=name) == values
    with pytest.raises(ValueError, match="no retrieval score 'diagonal'; there are diagonal_mean"):
        retrieval_metrics(audio, visual, score="diagonal")
