"""Dense grounding as an objective: joint losses, stages, pictures, retrieval, wrong settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.dense import ALL_TERMS, CONFIG, STAGED_STEPS, clips, small_objective
from support.processes import run_ranks

from engine.config import PretrainConfig, parse_config
from engine.evaluation.features import Features
from engine.evaluation.heat_pictures import heat_sheet, overlay
from engine.objectives.base import first_step
from engine.objectives.dense import DenseConfig
from engine.objectives.dense_terms import TermWeights
from models.dense.config import TowerConfig
from models.dense.similarity import SimilarityConfig


@pytest.fixture(scope="module")
def two_ranks() -> list[list[dict]]:
    return run_ranks("support.dense:gradients", 2, zero_stages=[0, 1, 2])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks_equal_one_process_with_every_regulariser(two_ranks, stage):
    objective = small_objective()
    values = objective(clips(6))
    values["loss"].backward()
    expected = {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    assert len(expected) == len(list(objective.model.parameters()))
    for rank in two_ranks:
        found = rank[stage]
        assert found["values"].keys() == values.keys()
        for name, value in values.items():
            torch.testing.assert_close(found["values"][name], value.detach(), rtol=1e-5, atol=1e-6)
        for name, grad in expected.items():
            difference = (found["grads"][name] - grad).norm()
            assert difference <= 1e-5 * grad.norm().clamp_min(1e-4), name


def test_every_term_says_something():
    values = small_objective()(clips(6))
    terms = [name for name in values if name.startswith("loss_") and name != "loss_scale"]
    assert len(terms) == 9  # the contrast and eight of nine regularisers; the scale is where it began
    assert all(values[name] > 0 for name in terms)
    total = (
        values["loss_contrastive"]
        + 0.1 * sum(values[n] for n in values if n.startswith("loss_"))
        - 0.1 * (values["loss_contrastive"])
    )
    torch.testing.assert_close(values["loss"].detach(), total, rtol=1e-5, atol=1e-6)


def test_a_weight_of_zero_is_not_computed():
    values = small_objective(DenseConfig())(clips(4))
    assert set(values) == {"loss", "loss_contrastive", "contrastive_accuracy", "contrastive_chance", "scale"}
    assert values["loss"] == values["loss_contrastive"]


def staged(tmp_path: Path, world_size: int, stages: list[int]) -> list[dict[str, Any]]:
    """Of each ZeRO stage: the run without a stop, one stopped early and resumed, one stopped between the boundaries."""
    runs = []
    for stage in stages:
        runs.append({"folder": str(tmp_path / f"whole{stage}"), "zero_stage": stage})
        for stop in (1, 3):
            folder = str(tmp_path / f"stopped{stage}_{stop}")
            runs += [
                {"folder": folder, "zero_stage": stage, "stop_at": stop},
                {"folder": folder, "zero_stage": stage},
            ]
    return run_ranks("support.dense:staged_runs", world_size, runs=runs)[0]


@pytest.mark.parametrize(("world_size", "stages"), [(1, [0]), (2, [1, 2])])
def test_stages_begin_where_they_should_and_resume_exactly(tmp_path, world_size, stages):
    results = staged(tmp_path, world_size, stages)
    for place in range(0, len(results), 5):
        whole, *rest = results[place : place + 5]
        assert whole["step"] == STAGED_STEPS
        moved = {
            name: [step for step in range(STAGED_STEPS - 1) if not torch.equal(x[step], x[step + 1])]
            for name, x in _histories(whole["seen"]).items()
        }
        for name, steps in moved.items():
            begin = 3 if "audio_tower" in name else 5 if "visual_tower" in name else 0
            assert steps == list(range(begin, STAGED_STEPS - 1)), name
        for stopped, resumed in (rest[:2], rest[2:]):
            assert not stopped["finished"]
            assert 1 < stopped["step"] < STAGED_STEPS
            for name, value in whole["final"].items():
                assert torch.equal(resumed["final"][name], value), name


def _histories(seen: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[int, torch.Tensor]]:
    names = seen["0"].keys()
    return {name: {int(step): values[name] for step, values in seen.items()} for name in names}


def test_the_first_step_of_an_epoch():
    assert [first_step(epoch, 2.5) for epoch in (0, 0.4, 1, 2, 2.1)] == [0, 1, 3, 5, 6]


def test_retrieval_is_by_the_dense_similarity():
    objective = small_objective().eval()
    batch = clips(7)
    with torch.no_grad():
        streams = objective.embed(batch)
        logits = objective(batch)["contrastive_accuracy"]
    values = objective.measure(Features(batch.ids, batch.rows, None, streams))
    found = values["retrieval_a2v_r1"] + values["retrieval_v2a_r1"]
    plain = small_objective(DenseConfig()).eval()
    assert found / 2 == pytest.approx(plain(batch)["contrastive_accuracy"].item())
    assert values["retrieval_chance_r1"] == pytest.approx(1 / 7)
    assert torch.isfinite(logits)
    probed = objective.probed(Features(batch.ids, batch.rows, None, streams))
    assert {name: rows.shape for name, rows in probed.items()} == {"audio": (7, 24), "visual": (7, 24)}


def test_pictures_show_no_heat_where_similarity_is_negative():
    frames = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert torch.equal(overlay(frames, -torch.ones(1, 2, 2), 1.0), frames)
    heat = -torch.ones(1, 2, 2)
    heat[0, 0, 0] = 2.0
    shown = overlay(frames, heat, 2.0)
    assert shown[0, :, 0, 0].tolist() != [100, 100, 100]
    assert torch.equal(shown[0, :, 5:, 5:], frames[0, :, 5:, 5:])
    sheet = heat_sheet(frames, heat[:, None].expand(1, 4, 2, 2), torch.ones(1, 4))
    assert sheet.shape == (3, 8, 64)
    assert torch.equal(sheet[:, :, :8], frames[0])
    pictures = small_objective().eval().pictures(clips(2))
    assert {name: x.shape for name, x in pictures.items()} == {"heat": (3, 64, 256)}


@pytest.mark.parametrize("name", ["pretrain_dense_tiny", "dense_hubert_dinov2", "denseav"])
def test_recipes_resolve(name):
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    config = parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(path)])[0]
    assert isinstance(config.objective, DenseConfig)
    assert config.model.name == name.removeprefix("pretrain_")
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert all(any(word in line for line in header) for word in ("Source", "Expected result"))


def test_wrong_settings_name_the_key():
    with pytest.raises(ValueError, match=r"objective\.contrast is 'mse'"):
        DenseConfig(contrast="mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"objective\.weights\.silence is -1"):
        TermWeights(silence=-1)
    with pytest.raises(
        ValueError, match=r"objective\.weights\.spliced_audio is above 0 and objective\.splice_share is 0"
    ):
        DenseConfig(weights=TermWeights(spliced_audio=0.1))
    with pytest.raises(ValueError, match=r"objective\.leak is 2"):
        DenseConfig(leak=2)
    with pytest.raises(ValueError, match=r"audio_from_epoch is above 0 and model\.audio\.source is null"):
        DenseConfig(audio_from_epoch=2).check(CONFIG)
    with pytest.raises(ValueError, match=r"visual_lr_ratio is 0"):
        DenseConfig(visual_lr_ratio=0)
    DenseConfig(audio_from_epoch=2).check(replace(CONFIG, audio=TowerConfig(source="weights/hubert")))


@pytest.mark.parametrize("rule", ["mima", "sisa", "paired"])
@pytest.mark.parametrize("heads", ["max", "sum"])
def test_other_similarities_train(rule, heads):
    model = replace(CONFIG, similarity=SimilarityConfig(rule, heads, nonnegative=True))
    objective = small_objective(ALL_TERMS, model)
    objective(clips(4))["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.model.parameters())
