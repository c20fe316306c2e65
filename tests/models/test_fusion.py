"""Pooling and fusion: against plain definitions, against scikit-learn, and what must have no influence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.ensemble import VotingClassifier
from torch import Tensor

from models.fusion.config import EarlyConfig, FusionModelConfig, IntermediateConfig, LateConfig, TowerConfig
from models.fusion.joining import FUSIONS, HeadShape
from models.fusion.pooling import POOLINGS, on_timeline
from models.towers import Tokens

T, P, D, K = 4, 3, 6, 2
# The last has the name of something that every module has.
HEADS = {"emotion": HeadShape(4), "tags": HeadShape(3, several=True), "type": HeadShape(2)}
WIDTHS = {"audio": 8, "visual": 6, "text": 4}
KINDS = {
    "late": {"fusion": "late"},
    "vote": {"fusion": "late", "late": LateConfig("vote", audio=2.0, text=0.5)},
    "stacked": {"fusion": "late", "late": LateConfig("stacked")},
    "intermediate": {"fusion": "intermediate", "intermediate": IntermediateConfig(12, 10)},
    "gated": {"fusion": "intermediate", "intermediate": IntermediateConfig(12, 10, gated=True)},
    "early": {"fusion": "early", "early": EarlyConfig(16, 2, 2)},
    "bottleneck": {"fusion": "early", "early": EarlyConfig(16, 2, 2, bottleneck=2)},
}


def naive(name: str, x: NDArray, mask: NDArray, cls: NDArray, p: dict[str, NDArray]) -> NDArray:
    """One clip's vector by the definition: (T, P, D) values and (T, P) mask."""
    own = x[mask]

    def attended(rows: list[NDArray], query: NDArray) -> NDArray:
        weights = np.exp([row @ query / np.sqrt(D) for row in rows])
        return np.sum([w * row for w, row in zip(weights / weights.sum(), rows, strict=True)], 0)

    if name == "mean":
        return own.mean(0)
    if name == "cls":
        return cls
    if name == "attention":
        return attended(list(own), p["query"])
    if name == "gem":
        return (np.maximum(own, 1e-6) ** p["power"]).mean(0) ** (1 / p["power"])
    if name == "netvlad":
        vectors = np.zeros((K, D))
        for row in own:
            share = np.exp(p["assign.weight"] @ row + p["assign.bias"])
            for k in range(K):
                vectors[k] += share[k] / share.sum() * (row - p["centres"][k])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.ravel() / np.linalg.norm(vectors)
    if name == "time_then_space":
        lines = [[x[t, q] for t in range(T) if mask[t, q]] for q in range(P)]
        return attended([attended(line, p["time_query"]) for line in lines if line], p["space_query"])
    lines = [[x[t, q] for q in range(P) if mask[t, q]] for t in range(T)]
    return attended([attended(line, p["space_query"]) for line in lines if line], p["time_query"])


def some_tokens(seed: int = 0, width: int = D) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(5, T * P, generator=generator) < 0.6
    mask[:, 0], mask[4] = True, False  # the last clip has nothing
    values = torch.randn(5, T * P, width, generator=generator)
    return Tokens(values, mask, (T, P), torch.randn(5, width, generator=generator))


def poisoned(tokens: Tokens) -> Tokens:
    values = torch.where(tokens.mask[..., None], tokens.values, torch.tensor(torch.nan))
    return Tokens(values, tokens.mask, tokens.grid, tokens.cls)


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_are_their_definitions_and_padding_has_no_influence(name: str):
    torch.manual_seed(1)
    pooling = POOLINGS[name](D, TowerConfig(pooling="netvlad", clusters=K))
    for part, parameter in pooling.named_parameters():
        assert parameter.ndim  # DeepSpeed takes no other
        if part != "power":
            torch.nn.init.normal_(parameter, std=0.5)
    tokens = some_tokens()
    found = pooling(clean(tokens))
    values = {n: v.detach().double().numpy() for n, v in pooling.named_parameters()}
    x, mask = tokens.values.double().numpy().reshape(5, T, P, D), tokens.mask.numpy().reshape(5, T, P)
    assert tokens.cls is not None
    for row in range(4):
        expected = naive(name, x[row], mask[row], tokens.cls.double().numpy()[row], values)
        np.testing.assert_allclose(found[row].detach().numpy(), expected, atol=2e-5)
    again = pooling(clean(poisoned(tokens)))
    assert torch.equal(found, again)
    assert found.shape == (5, pooling.width)
    if name == "cls":
        return
    clean_tokens = clean(tokens)
    clean_tokens.values.requires_grad_()
    pooling(clean_tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pooling.parameters())
    assert clean_tokens.values.grad is not None
    assert clean_tokens.values.grad.isfinite().all()
    assert not clean_tokens.values.grad[~tokens.mask].any()


def clean(tokens: Tokens) -> Tokens:
    """As `on_timeline` gives them."""
    return Tokens(
        tokens.values.masked_fill(~tokens.mask[..., None], 0.0), tokens.mask, tokens.grid, tokens.cls
    )


def test_timelines():
    values = torch.arange(6.0).reshape(1, 6, 1)
    every = torch.ones(1, 6).bool()
    assert on_timeline(Tokens(values, every, (2, 3)), "audio").values.flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert on_timeline(Tokens(values, every, (2, 3)), "audio").grid == (3, 2)
    assert on_timeline(Tokens(values, every, (6,)), "text").grid == (6, 1)
    assert on_timeline(Tokens(values, every, (3, 1, 2)), "visual").grid == (3, 2)
    assert on_timeline(Tokens(values, every, (2, 3)), "visual").grid == (1, 6)


def test_cls_needs_a_class_token():
    with pytest.raises(ValueError, match="needs a tower with a class token"):
        POOLINGS["cls"](D, TowerConfig())(Tokens(torch.ones(1, 2, D), torch.ones(1, 2).bool(), (2, 1)))


def build(kind: str) -> Any:
    torch.manual_seed(0)
    config = FusionModelConfig(**KINDS[kind])  # type: ignore[arg-type]
    fusion = FUSIONS[config.fusion](config, WIDTHS, HEADS)
    for name, parameter in fusion.named_parameters():
        if "absent" in name:
            torch.nn.init.normal_(parameter)
    return fusion


def given() -> tuple[dict[str, Tokens], dict[str, Tensor]]:
    tokens = {m: clean(some_tokens(i, width)) for i, (m, width) in enumerate(WIDTHS.items())}
    there = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 1, 1]]).bool()
    for m in WIDTHS:
        tokens[m].mask[:, 0] = True
    return tokens, dict(zip(WIDTHS, there.unbind(1), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_absent_has_no_influence_and_every_weight_a_gradient(kind: str):
    fusion = build(kind)
    tokens, present = given()
    found = fusion(tokens, present)
    assert set(found.probabilities) == set(HEADS)
    assert found.probabilities["emotion"].shape == (5, 4)
    torch.testing.assert_close(found.probabilities["emotion"].sum(1), torch.ones(5))
    assert ((found.probabilities["tags"] >= 0) & (found.probabilities["tags"] <= 1)).all()
    other = {
        m: Tokens(torch.where(present[m][:, None, None], t.values, 9.0), t.mask, t.grid, t.cls)
        for m, t in tokens.items()
    }
    again = fusion(other, present)
    for head in HEADS:
        assert torch.equal(found.probabilities[head], again.probabilities[head])
        for one, two in zip(found.opinions[head], again.opinions[head], strict=True):
            counted = one.weight > 0
            assert torch.equal(one.logits[counted], two.logits[counted])
    for row in range(5):  # alone as among others
        single = fusion(
            {m: Tokens(t.values[[row]], t.mask[[row]], t.grid, None) for m, t in tokens.items()},
            {m: x[[row]] for m, x in present.items()},
        )
        torch.testing.assert_close(single.probabilities["emotion"][0], found.probabilities["emotion"][row])
    loss = sum(
        (o.weight * torch.nn.functional.log_softmax(o.logits, 1)[:, 0]).sum()
        for h in HEADS
        for o in found.opinions[h]
    )
    loss.backward()  # type: ignore[union-attr]
    assert not [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_late_fusion_is_scikit_learns_voting(combine: str):
    weights = {"audio": 2.0, "visual": 1.0, "text": 0.5}
    torch.manual_seed(0)
    config = FusionModelConfig(fusion="late", late=LateConfig(combine, **weights))  # type: ignore[arg-type]
    fusion = FUSIONS["late"](config, WIDTHS, {"emotion": HeadShape(4)})
    tokens, present = given()
    everyone = {m: torch.ones_like(x) for m, x in present.items()}
    fused = fusion(tokens, everyone)
    each = [o.logits.softmax(1).detach().numpy() for o in fused.opinions["emotion"]]

    class Fixed:
        def __init__(self, probabilities: NDArray) -> None:
            self.probabilities, self.classes_ = probabilities, np.arange(4)

        def predict_proba(self, rows: NDArray) -> NDArray:
            return self.probabilities[rows[:, 0]]

        def predict(self, rows: NDArray) -> NDArray:
            return self.predict_proba(rows).argmax(1)

    soft = VotingClassifier(
        [(m, None) for m in WIDTHS],
        voting="soft" if combine == "mean" else "hard",
        weights=list(weights.values()),
    )
    soft.estimators_ = [Fixed(x) for x in each]
    from sklearn.preprocessing import LabelEncoder

    soft.le_ = LabelEncoder().fit(np.arange(4))
    rows = np.arange(5)[:, None]
    assert fused.probabilities["emotion"].argmax(1).tolist() == soft.predict(rows).tolist()
    if combine == "mean":
        np.testing.assert_allclose(
            fused.probabilities["emotion"].numpy(), soft.predict_proba(rows), atol=1e-6
        )


def test_settings_without_effect_are_refused():
    for settings, message in (
        ({"late": LateConfig("vote")}, r"model\.late has no effect: model\.fusion is intermediate"),
        ({"modalities": ("audio",), "text": TowerConfig(width=64)}, r"model\.text has no effect"),
        ({"fusion": "early", "audio": TowerConfig(pooling="gem")}, r"model\.audio\.pooling has no effect"),
        ({"modalities": ("audio", "smell")}, "must name some of audio, visual, text"),
        ({"name": "cav_mae_tiny"}, "have the model fusion"),
    ):
        with pytest.raises(ValueError, match=message):
            FusionModelConfig(**settings)  # type: ignore[arg-type]
