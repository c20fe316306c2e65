"""A small fusion objective, made-up clips for it, and runs in one and in two processes."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from support.labelled_runs import tune_here

from datasets.batch import AVBatch
from engine.objectives.fusion import FusionConfig, FusionObjective, heads_of
from engine.parallel.deepspeed_engine import ParallelConfig, build_engine
from engine.parallel.world import distributed
from engine.training.optimizer import OptimizerConfig, build_optimizer
from models import FbankConfig
from models.fusion import FusionModel, FusionModelConfig, build_towers
from models.fusion.config import TextTowerConfig, TowerConfig, VisualTowerConfig

VOCABULARY = ["emotion:anger", "emotion:joy", "emotion:neutral", "sentiment:negative", "sentiment:positive"]
FBANK = FbankConfig(target_length=32, num_mel_bins=32)
ROWS = 8


def small_objective(model: dict[str, Any] | None = None, **settings: Any) -> FusionObjective:
    """The same weights at each call."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "audio_length": 32, "num_mel_bins": 32}
    towers = {
        "audio": TowerConfig(width=16),
        "visual": VisualTowerConfig(width=16),
        "text": TextTowerConfig(width=16),
    }
    config = FusionModelConfig(**{**sizes, **towers, **(model or {})})  # type: ignore[arg-type]
    objective = FusionConfig(**settings)
    heads = heads_of(objective, VOCABULARY)
    built = FusionModel(
        config, build_towers(config, FBANK), {name: head.shape for name, head in heads.items()}
    )
    return FusionObjective(built, FBANK, objective, heads)


def spoken_batch(rows: list[int]) -> AVBatch:
    """Clips that are functions of their row; the second half has no text, row 1 no sound, row 2 no frames."""
    clips = [torch.Generator().manual_seed(row) for row in rows]
    lengths = [0 if row == 1 else 3000 + 300 * row for row in rows]
    wave = [torch.randint(-9000, 9000, (FBANK.num_samples,), generator=g, dtype=torch.int16) for g in clips]
    frames = [torch.randint(0, 256, (1, 3, 32, 32), generator=g, dtype=torch.uint8) for g in clips]
    labels = torch.zeros(len(rows), 5)
    for i, row in enumerate(rows):
        labels[i, row % 3] = 1
        labels[i, 3 + row % 2] = float(row != 6)
    return AVBatch(
        ids=[f"clip{row}" for row in rows],
        rows=torch.tensor(rows),
        seeds=torch.tensor([7919 * row + 1 for row in rows]),
        waveform=torch.stack(wave),
        num_samples=torch.tensor(lengths),
        frames=torch.stack(frames),
        labels=labels,
        frame_index=torch.zeros(len(rows), 1, dtype=torch.int64),
        num_stored=torch.tensor([0 if row == 2 else 10 for row in rows]),
        text=[None if row >= ROWS // 2 else f"clip {row}" for row in rows],
    )


def in_two(kinds: list[dict], runs: list[list[str]]) -> dict[str, Any]:
    """Gradients of each kind, this rank having half of the clips and the second rank no text; then runs."""
    from deepspeed.utils import safe_get_full_grad

    found = []
    with distributed() as world:
        for kind in kinds:
            objective = small_objective({"fusion": kind["fusion"]}, modality_dropout=0.3)
            parallel = ParallelConfig(global_batch_size=ROWS, precision="fp32", zero_stage=kind["zero_stage"])
            optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
            engine = build_engine(objective, optimizer, parallel, world)
            half = ROWS // world.size
            batch = spoken_batch(list(range(world.rank * half, (world.rank + 1) * half)))
            engine.set_gradient_accumulation_boundary(True)
            loss = engine(batch)["loss"]
            engine.backward(loss)
            grads = {n: safe_get_full_grad(p) for n, p in engine.module.model.named_parameters()}
            engine.step()
            found.append({"loss": loss.detach(), "grads": grads})
        return {"found": found, "tuned": tune_here(runs, world)}


def in_one(first: list[list[str]], sources: str, then: list[list[str]]) -> list[bool]:
    """Runs, and others when the folders that their towers came from are gone."""
    with distributed() as world:
        done = tune_here(first, world)
        shutil.rmtree(sources)
        return [*done, *tune_here(then, world)]
