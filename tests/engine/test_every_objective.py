"""What every registered objective must satisfy, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.objectives import BATCH, STEPS, TINY, tiny_batch, tiny_objective
from support.processes import run_ranks
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.checkpoints.folder import find_checkpoints
from engine.evaluation.features import Features
from engine.objectives.registry import list_objectives
from engine.records.runlog import read_metrics
from engine.training.optimizer import OptimizerConfig, build_optimizer
from engine.training.spoiling_clips import spoiling_clips
from models.layers import blocks

KINDS = sorted(TINY)
every_kind = pytest.mark.parametrize("kind", KINDS)


def test_every_registered_objective_is_tried_here() -> None:
    assert list_objectives() == KINDS


@every_kind
def test_forward_names_finite_scalars_and_only_the_loss_has_a_gradient(kind: str) -> None:
    objective = tiny_objective(kind)
    values = objective(tiny_batch(objective, [0, 1, 2, 3]))
    for name, value in values.items():
        assert value.shape == (), name
        assert value.dtype == torch.float32, name
        assert value.isfinite(), name
        assert value.requires_grad == (name == "loss"), name


@every_kind
def test_a_batch_can_be_searched_for_clips_that_spoil_it(kind: str) -> None:
    objective = tiny_objective(kind)
    batch = tiny_batch(objective, [0, 1])
    assert spoiling_clips(objective, [batch], torch.device("cpu"), bf16=False) == []
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.fill_(torch.nan)
    assert spoiling_clips(objective, [batch], torch.device("cpu"), bf16=False) == batch.ids


@every_kind
def test_every_trained_parameter_gets_a_gradient_and_nothing_else_does(kind: str) -> None:
    objective = tiny_objective(kind)
    objective(tiny_batch(objective, [0, 1, 2, 3]))["loss"].backward()
    trained = dict(objective.model.named_parameters())
    missing = [n for n, p in trained.items() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing
    beside = {n: p for n, p in objective.named_parameters() if not n.startswith("model.")}
    assert not [n for n, p in beside.items() if p.requires_grad or p.grad is not None]
    optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trained.values() if p.requires_grad}


def test_two_ranks_equal_one_process() -> None:
    for kind, first, second in zip(
        KINDS, *run_ranks("support.objectives:gradients", 2, kinds=KINDS), strict=True
    ):
        objective = tiny_objective(kind)
        loss = objective(tiny_batch(objective, list(range(BATCH))))["loss"]
        loss.backward()
        torch.testing.assert_close(first["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        for name, parameter in objective.model.named_parameters():
            if parameter.grad is None:
                continue
            assert torch.equal(first["grads"][name], second["grads"][name])
            difference = (first["grads"][name] - parameter.grad).norm()
            assert difference <= 1e-4 * parameter.grad.norm() + 1e-7, (kind, name)


def test_resume_is_exact_also_in_another_world(tmp_path: Path) -> None:
    def runs(folder: str, **settings: Any) -> list[dict]:
        return [{"kind": kind, "run": str(tmp_path / f"{folder}_{kind}"), **settings} for kind in KINDS]

    stop = {"stop": STEPS // 2}
    run_ranks("support.objectives:fits", 2, runs=runs("elsewhere", zero_stage=1, **stop))
    (first,) = run_ranks("support.objectives:fits", 1, runs=runs("whole") + runs("interrupted", **stop))
    assert [outcome["finished"] for outcome in first] == [True] * len(KINDS) + [False] * len(KINDS)
    again = runs("interrupted") + runs("elsewhere", zero_stage=1)
    (second,) = run_ranks("support.objectives:fits", 1, runs=again)
    for i, kind in enumerate(KINDS):
        whole, interrupted, elsewhere = (
            losses(tmp_path / f"{name}_{kind}") for name in ("whole", "interrupted", "elsewhere")
        )
        assert whole == interrupted, kind
        assert elsewhere == pytest.approx(whole, rel=1e-4), kind
        for name, value in first[i]["beside_model"].items():
            assert torch.equal(value, second[i]["beside_model"][name]), (kind, name)


def test_the_benchmark_of_a_step_knows_every_objective(tmp_path: Path) -> None:
    (seconds,) = run_ranks("support.objectives:benchmarked_steps", 1, kinds=KINDS, folder=str(tmp_path))
    assert len(seconds) == len(KINDS)
    assert min(seconds) > 0


def losses(run: Path) -> list[float]:
    records = read_metrics(run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert find_checkpoints(run)[-1].state.step == STEPS
    return [record["train/loss"] for record in records]


@every_kind
@pytest.mark.parametrize("bf16", [False, True])
def test_vectors_and_pictures(kind: str, bf16: bool) -> None:
    objective = tiny_objective(kind).eval()
    batch = tiny_batch(objective, list(range(6)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        vectors, pictures = objective.embed(batch), objective.pictures(batch.first(2))
        again = objective.embed(batch)
    assert {"audio", "visual"} <= set(vectors)
    for name, rows in vectors.items():
        assert rows.dtype == torch.float32, name
        assert len(rows) == 6, name
        assert rows.isfinite().all(), name
        assert torch.equal(rows, again[name]), name
    for name, picture in pictures.items():
        assert picture.dtype == torch.uint8, name
        assert picture.shape[0] == 3, name
    features = Features(batch.ids, batch.rows, None, vectors)
    assert all(torch.tensor(value).isfinite() for value in objective.measure(features).values())
    assert all(rows.shape[0] == 6 and rows.ndim == 2 for rows in objective.probed(features).values())


@every_kind
@pytest.mark.parametrize("bf16", [False, True])
def test_memory_is_what_autograd_keeps(kind: str, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a GPU does: on a CPU in bfloat16 attention is not fused.
    monkeypatch.setattr(blocks, "attend", F.scaled_dot_product_attention)
    objective = tiny_objective(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        measured = (kept_bytes(objective, 24) - kept_bytes(objective, 8)) / 16
    # Dense grounding's similarities and regularisers are not counted: large only beside towers as small as these.
    share = 0.13 if kind == "dense" else 0.055
    assert objective.workload(bf16).activations == pytest.approx(measured, rel=share)


def kept_bytes(objective: Any, clips: int) -> int:
    """Bytes that autograd keeps of a forward pass, weights aside; each storage once."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values = objective(
            tiny_batch(objective, list(range(clips)))
        )  # kept, so that no storage is used twice
    assert values["loss"].requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


@every_kind
def test_flops_are_those_that_torch_counts(kind: str) -> None:
    """Linear layers and convolutions of both passes; attention, similarities and the front end are not counted."""
    objective = tiny_objective(kind)
    batch = tiny_batch(objective, list(range(8)))
    with FlopCounterMode(display=False) as front_end:
        objective.inputs(batch)
    with FlopCounterMode(display=False) as counter:
        objective(batch)["loss"].backward()
    counted = linear(counter) - linear(front_end)
    assert objective.workload(bf16=False).flops * 8 == pytest.approx(counted, rel=0.15)


def linear(counter: FlopCounterMode) -> int:
    ops = counter.get_flop_counts()["Global"]
    counted = ("aten.mm", "aten.addmm", "aten.convolution", "aten.convolution_backward")
    return sum(count for op, count in ops.items() if str(op) in counted)
