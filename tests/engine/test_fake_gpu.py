"""A training step on a GPU, without one: all of it is computed there, in the right types, and nobody waits for it.

Of the front end on the device: log-mel and frames of every objective; noise, roll and masks of spectrograms, mixing of
clips; EquiAV's transformations of spectrograms and pictures; spliced sounds and mixed pictures. On a machine without a
GPU a PyTorch for CUDA does everything but the backward pass, and gradients are zeros (`support.fake_gpu.works`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from support import fusion
from support.fake_gpu import GPU, NoWaiting, fake_gpu, on_gpu, works
from support.objectives import TINY, tiny_batch, tiny_objective
from support.training import make_batch, small_model_config
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from datasets.batch import AVBatch
from datasets.loading.sampling import MixedBatch
from engine.objectives.base import Objective
from engine.objectives.classification import Classification, ClassificationConfig
from engine.objectives.dense_terms import TermWeights
from engine.objectives.fusion import HeadConfig
from engine.objectives.teacher import FrozenTeacher
from engine.records.metrics import MetricBuffer
from engine.training.optimizer import OptimizerConfig, build_optimizer, clip_gradients, skip_unless_finite
from models import AudioVisualClassifier, FbankConfig, MaskConfig
from models.layers.masking import MaskStrategy

Case = tuple[Objective[Any], AVBatch]


def tiny(kind: str, objective: dict[str, Any] | None = None, **model: Any) -> Callable[[], Case]:
    def make() -> Case:
        made = tiny_objective(kind, objective or {}, **model)
        return made, tiny_batch(made, [0, 1, 2, 3])

    return make


def classification() -> Case:
    """The published fine-tuning recipe: mixed clips, SpecAugment, noise and roll, smoothed labels."""
    config = small_model_config()
    settings = ClassificationConfig(freq_mask=8, time_mask=8, noise_and_roll=True, label_smoothing=0.1)
    made = Classification(
        AudioVisualClassifier(config, 3), FbankConfig(num_mel_bins=32, target_length=32), settings
    )
    batch, partners = (replace(make_batch(rows), labels=torch.eye(3)) for rows in ([0, 1, 2], [3, 4, 5]))
    return made, MixedBatch(**vars(batch), weights=torch.tensor([0.5, 1.0, 0.25]), partners=partners)


def fused(model: dict[str, Any]) -> Callable[[], Case]:
    heads = (HeadConfig("emotion", balanced=True), HeadConfig("sentiment", loss="bce"))

    def make() -> Case:
        made = fusion.small_objective(model, heads=heads, modality_dropout=0.3)
        made.heads["emotion"] = replace(made.heads["emotion"], weights=(0.5, 2.0, 1.0))
        return made, fusion.spoken_batch(list(range(4)))

    return make


def differentiate(x: Tensor) -> None:
    x.square().backward()


TERMS = TermWeights(**{field.name: 0.1 for field in fields(TermWeights)})
STRUCTURED = MaskConfig(0.5, 0.5, MaskStrategy.time_frequency)
#: Every registered objective, some with settings that lead through more of the code, and the labelled ones.
CASES: dict[str, Callable[[], Case]] = {
    **{kind: tiny(kind) for kind in sorted(TINY)},
    "cav_mae": tiny("cav_mae", {"contrast_mask_ratio": 0.5}, mask=STRUCTURED, activation_checkpointing=True),
    "tg_dp": tiny("tg_dp", {"align_by_time": True}),
    "dense": tiny("dense", {"weights": TERMS, "splice_share": 0.5, "contrast": "bce", "leak": 0.1}),
    "classification": classification,
    "fusion, late": fused({"fusion": "late"}),
    "fusion, early": fused({"fusion": "early"}),
}


@pytest.mark.parametrize(("case", "bf16"), [("cav_mae", False), *((case, True) for case in CASES)])
def test_a_step_stays_on_the_gpu(case: str, bf16: bool) -> None:
    objective, batch = CASES[case]()
    teachers = [value for value in vars(objective).values() if isinstance(value, FrozenTeacher)]
    encoders = [teacher.encoder(torch.device("cpu")) for teacher in teachers]  # read, before nothing can be
    recorded, differentiated = works(torch.square), works(differentiate)
    with fake_gpu() as mode:
        for module in (objective, *encoders):
            on_gpu(module, mode)
        for teacher in teachers:
            teacher._device = GPU
        optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
        metrics, batch = MetricBuffer(1, GPU), batch._map(mode.from_tensor)
        with NoWaiting() as seen:
            objective.before_step(0, 10.0)
            autocast = torch.autocast("cuda", torch.bfloat16, enabled=bf16)
            with autocast, torch.set_grad_enabled(recorded):
                values = objective(batch.to(GPU))
            if differentiated:
                values["loss"].backward()
            else:
                for parameter in objective.model.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
            norm = clip_gradients(gradients, 1.0, partitioned=False)
            skip_unless_finite(optimizer, norm)
            optimizer.step()
            objective.after_step(1, 10)
            metrics.append(1, {**values, "grad_norm": norm})
    for value in (*values.values(), norm, *gradients):
        assert (value.device, value.dtype) == (GPU, torch.float32)
    assert gradients
    # Linear layers; some fusions keep theirs in float32.
    products = seen.dtypes["addmm"] | seen.dtypes["mm"]
    assert (torch.bfloat16 in products) == bf16
    assert torch.float16 not in set().union(*seen.dtypes.values())


@pytest.mark.parametrize("kind", sorted(TINY))
def test_inputs_and_vectors_stay_on_the_gpu(kind: str) -> None:
    objective = tiny_objective(kind).eval()
    batch = tiny_batch(objective, [0, 1])
    with fake_gpu() as mode:
        on_gpu(objective, mode)
        batch = batch._map(mode.from_tensor).to(GPU)
        with NoWaiting(), torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            found = {**dict(enumerate(objective.inputs(batch))), **objective.embed(batch)}
    for name, value in found.items():
        assert (value.device, value.dtype) == (GPU, torch.float32), name


@pytest.mark.parametrize(
    ("operation", "refused"),
    [
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: bool((x > 0).all()), DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.cpu(), AssertionError),
        (lambda x: x + torch.ones(()), AssertionError),
        (lambda x: x + torch.ones(3), RuntimeError),
        (lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=GPU), AssertionError),
        (lambda x: x[[0, 2]], AssertionError),
    ],
    ids=["item", "bool", "mask", "cpu", "number of the host", "tensor of the host", "constant", "places"],
)
def test_what_waits_is_found(operation: Callable[[Tensor], Any], refused: type[Exception]) -> None:
    with fake_gpu(), pytest.raises(refused), NoWaiting():
        operation(torch.ones(3, device=GPU))


def test_what_is_sent_without_waiting_is_no_fault() -> None:
    with fake_gpu(), NoWaiting():
        assert torch.ones(3).to(GPU, non_blocking=True).device == GPU
