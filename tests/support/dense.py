"""A very small dense grounding model, clips for it, and runs of it in several processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.batch import AVBatch
from engine.objectives.dense import Dense, DenseConfig
from engine.objectives.dense_terms import TermWeights
from engine.parallel.deepspeed_engine import ParallelConfig, build_engine
from engine.parallel.world import World, distributed
from engine.training.optimizer import OptimizerConfig, build_optimizer
from engine.training.train_config import TrainConfig
from models import FbankConfig
from models.dense.config import DenseModelConfig, HeadConfig, TowerConfig
from models.dense.model import DenseModel

FBANK = FbankConfig(target_length=64, num_mel_bins=32)
CONFIG = DenseModelConfig(
    image_size=32,
    audio_length=64,
    num_mel_bins=32,
    audio=TowerConfig(width=16, depth=1),
    visual=TowerConfig(width=16, depth=1),
    audio_head=HeadConfig(time_convs=1, attention=True),
    embed_dim=24,
    num_heads=2,
)
#: Every regulariser, with something for each to say.
ALL_TERMS = DenseConfig(
    weights=TermWeights(**dict.fromkeys(asdict(TermWeights()), 0.1)),
    num_drawn=30,
    splice_share=0.5,
    mix_share=0.5,
)


def small_dense(config: DenseModelConfig = CONFIG, seed: int = 0) -> DenseModel:
    torch.manual_seed(seed)
    return DenseModel(config)


def small_objective(config: DenseConfig = ALL_TERMS, model: DenseModelConfig = CONFIG) -> Dense:
    return Dense(small_dense(model), FBANK, config)


def clips(count: int, start: int = 0) -> AVBatch:
    """Clips that are functions of their number: noise, some of it silent or ending early, and one frame."""
    samples = FBANK.num_samples
    waveforms, frames = [], []
    for number in range(start, start + count):
        generator = torch.Generator().manual_seed(number)
        wave = torch.randint(-8000, 8000, (samples,), generator=generator, dtype=torch.int16)
        wave[int(0.3 * samples) : int(0.7 * samples)] = 0
        waveforms.append(wave)
        frames.append(torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8))
    rows = torch.arange(start, start + count)
    lengths = torch.where(rows % 3 == 1, samples * 3 // 4, samples)
    return AVBatch(
        [f"clip{row}" for row in rows],
        rows,
        rows * 7919 + 1,
        torch.stack(waveforms),
        lengths,
        torch.stack(frames),
    )


def gradients(zero_stages: list[int]) -> list[dict[str, Any]]:
    """Loss and gradients of one step on six clips of all ranks, for each ZeRO stage."""
    from deepspeed.utils import safe_get_full_grad

    found = []
    with distributed() as world:
        for stage in zero_stages:
            parallel = ParallelConfig(global_batch_size=6, zero_stage=stage, precision="fp32")  # type: ignore[arg-type]
            objective = small_objective()
            optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
            engine = build_engine(objective, optimizer, parallel, world)
            own = 6 // world.size
            values = engine(clips(own, world.rank * own))
            engine.backward(values["loss"])
            named = {name: safe_get_full_grad(p) for name, p in objective.model.named_parameters()}
            grads = {name: grad.clone() for name, grad in named.items() if grad is not None}
            engine.step()
            found.append({"values": {k: v.detach() for k, v in values.items()}, "grads": grads})
    return found


#: Steps of a staged run, with two to an epoch: sound is frozen until step 3, pictures until step 5.
STAGES = DenseConfig(audio_from_epoch=1.5, visual_from_epoch=2.5, audio_lr_ratio=0.5)
STAGED_STEPS = 8


def staged_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of `STAGES`, one after the other in one process group; see `_staged_run`."""
    with distributed() as world:
        return [_staged_run(world, **run) for run in runs]


def _staged_run(world: World, folder: str, zero_stage: Any, stop_at: int = 0) -> dict[str, Any]:
    """Trains to the end, or asks to stop after a step; weights by step where the run comes by, and the final ones."""
    from support.training import make_trainer

    parallel = ParallelConfig(global_batch_size=12, zero_stage=zero_stage, precision="fp32")
    train = TrainConfig(steps=STAGED_STEPS, log_interval=1, checkpoint_interval=100, parallel=parallel)
    objective = small_objective(STAGES)
    seen: dict[str, dict[str, Tensor]] = {}
    own = 12 // world.size

    def loader(start_step: int, skipped: Collection[int]) -> Iterator[AVBatch]:
        for step in range(start_step, STAGED_STEPS + 2):
            seen[str(step)] = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
            if step == stop_at and stop_at > start_step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield clips(own, (step % 2) * 12 + world.rank * own)

    trainer = make_trainer(world, Path(folder), train, objective=objective, loader=loader)
    finished = trainer.fit()
    final = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    return {"finished": finished, "step": trainer.step, "seen": seen, "final": final}
