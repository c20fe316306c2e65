"""Two real processes equal one process on the joint batch, in loss and in every gradient."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support.processes import run_ranks
from support.training import micro_batches, small_objective

from engine.parallel.deepspeed_engine import ParallelConfig


@cache
def reference(accumulation: int, bidirectional: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Plain autograd on the joint micro-batches, without DeepSpeed and without processes."""
    objective = small_objective(bidirectional=bidirectional)
    parallel = ParallelConfig(global_batch_size=8, accumulation_steps=accumulation)
    batches = micro_batches(0, 1, parallel, 0, ())
    total = torch.zeros(())
    for _ in range(accumulation):
        loss = objective(next(batches))["loss"] / accumulation
        loss.backward()
        total += loss.detach()
    grads = {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    assert len(grads) == len(list(objective.model.parameters()))
    return total, grads


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-12)).item()


CASES = [
    *({"zero_stage": z, "accumulation": a, "bidirectional": z == 1} for z in (0, 1, 2) for a in (1, 2)),
    *({"zero_stage": z, "accumulation": 1, "clip": 0.05} for z in (0, 1, 2)),
    {"zero_stage": 0, "accumulation": 1, "negatives": "local"},
    *({"zero_stage": z, "accumulation": 1, "precision": "bf16"} for z in (0, 1, 2)),
    *({"zero_stage": z, "accumulation": a, "overlap_comm": True} for z in (1, 2) for a in (1, 2)),
]


@pytest.fixture(scope="module")
def results() -> list[tuple[dict, dict]]:
    """Each case with what the two ranks computed."""
    ranks = run_ranks("support.training:gradients", 2, cases=CASES)
    for first, second in zip(*ranks, strict=True):
        assert all(torch.equal(first["grads"][name], second["grads"][name]) for name in first["grads"])
    return list(zip(CASES, ranks[0], strict=True))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_two_ranks_equal_one_process(results, zero_stage: int, accumulation: int) -> None:
    case, result = results[zero_stage * 2 + accumulation - 1]
    assert (case["zero_stage"], case["accumulation"]) == (zero_stage, accumulation)
    loss, grads = reference(accumulation, case["bidirectional"])
    assert relative(result["loss"], loss) < 1e-5
    for name, expected in grads.items():
        assert relative(result["grads"][name], expected) < 1e-5, name


def test_so_they_do_where_zero_exchanges_during_the_backward_pass(results) -> None:
    for case, result in results[-4:]:
        assert case["overlap_comm"]
        assert result["overlaps"]
        loss, grads = reference(case["accumulation"], False)
        assert relative(result["loss"], loss) < 1e-5
        for name, expected in grads.items():
            assert relative(result["grads"][name], expected) < 1e-5, (case, name)
    with pytest.raises(ValueError, match="overlap_comm is of zero_stage 1 and 2"):
        ParallelConfig(overlap_comm=True)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_clipping_is_that_of_torch(results, zero_stage: int) -> None:
    _, result = results[6 + zero_stage]
    _, grads = reference(1, False)
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05)
    assert norm > 0.05
    assert relative(result["norm"], norm) < 1e-5
    for name, parameter in zip(grads, parameters, strict=True):
        assert parameter.grad is not None
        assert relative(result["grads"][name], parameter.grad) < 1e-5, name


def test_local_negatives_are_each_ranks_own(results) -> None:
    _, result = results[9]
    objective = small_objective(negatives="local")
    halves = micro_batches(0, 1, ParallelConfig(global_batch_size=4), 0, ())
    for _ in range(2):
        (objective(next(halves))["loss"] / 2).backward()
    for name, parameter in objective.model.named_parameters():
        assert parameter.grad is not None
        assert relative(result["grads"][name], parameter.grad) < 1e-5, name
    assert relative(result["loss"], reference(1, False)[0]) > 1e-4


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_bf16_is_near_fp32_with_float32_gradients(results, zero_stage: int) -> None:
    case, result = results[10 + zero_stage]
    assert (case["precision"], case["zero_stage"]) == ("bf16", zero_stage)
    loss, grads = reference(1, False)
    assert result["loss"].dtype == torch.float32
    assert 0 < relative(result["loss"], loss) < 1e-2
    whole, expected = (torch.cat([g[name].flatten() for name in grads]) for g in (result["grads"], grads))
    assert whole.dtype == torch.float32
    assert 1e-5 < relative(whole, expected) < 5e-2


def test_rows_are_gathered_as_by_torch() -> None:
    """The same rows, and the same gradients but for the order of a sum."""
    for (rows, gradient), (expected, expected_gradient) in run_ranks("support.training:gathered", 2):
        assert torch.equal(rows, expected)
        torch.testing.assert_close(gradient, expected_gradient)
