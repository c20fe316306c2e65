"""A tiny config of every registered objective, made-up batches that suit it, and trainings of several at a time."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import tempfile
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from support.training import make_trainer

from benchmarks.step import build, make_batch, timed_step
from datasets.batch import AVBatch
from engine.objectives.base import PretrainingObjective
from engine.objectives.dense_terms import TermWeights
from engine.objectives.registry import build_objective, objective_kind
from engine.parallel.deepspeed_engine import ParallelConfig, build_engine
from engine.parallel.world import World, distributed
from engine.training.optimizer import OptimizerConfig, build_optimizer
from engine.training.train_config import TrainConfig
from models import FbankConfig, MaskConfig, build_model, create_config
from models.dense.config import TowerConfig
from models.weights.description import Description, save_described


@functools.cache
def tiny_teacher() -> str:
    """A first stage's weights in a file of this process's own; the same weights in every process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = create_config(**{**INPUT, **TINY["mavil"]["model"]})
    path = Path(folder) / "teacher.safetensors"
    fbank = FbankConfig(target_length=config.audio_length, num_mel_bins=config.num_mel_bins)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_described(path, build_model(config).state_dict(), Description(config, fbank))
    return str(path)


_MAVIL = {
    "name": "mavil_tiny", "frames": 2, "embed_dim": 32, "num_heads": 2, "depth": 1, "fusion_depth": 1,
    "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2, "mask": MaskConfig(0.5, 0.5),
}  # fmt: skip
_SYNC = {
    "name": "cav_mae_sync_tiny", "segment_length": 32, "num_registers": 2, "embed_dim": 24, "num_heads": 2,
    "modality_depth": 1, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip
#: By kind: the model's preset and settings, and the objective's. Inputs are 32 pixels and 32 × 32 spectrograms.
TINY: dict[str, dict[str, Any]] = {
    "cav_mae": {
        "model": {
            "name": "cav_mae_tiny", "embed_dim": 24, "num_heads": 2, "modality_depth": 1,
            "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
        },
        "objective": {"contrast_weight": 0.1},
    },
    "equiav": {
        "model": {
            "name": "equiav_tiny", "embed_dim": 48, "num_heads": 2, "modality_depth": 2, "transform_dim": 8,
            "predictor_heads": 2, "predictor_head_dim": 8, "projection_dim": 16, "intra_dim": 12, "inter_dim": 12,
        },
        "objective": {"centroid": 3},
    },
    "mavil": {"model": _MAVIL, "objective": {"intra_weight": 0.1}},
    "mavil_self_training": {
        "model": _MAVIL,
        "objective": {"teacher": tiny_teacher, "intra_weight": 0.1, "reconstruction_weight": 0.5},
    },
    "cav_mae_sync": {"model": _SYNC, "objective": {"frames": 4, "contrast_mask_ratio": 0.5}},
    "tg_dp": {"model": _SYNC, "objective": {"frames": 4, "momentum": 0.5}},
    "dense": {
        "model": {
            "name": "dense_tiny", "embed_dim": 16, "num_heads": 2,
            "audio": TowerConfig(width=32, depth=1), "visual": TowerConfig(width=32, depth=1),
        },
        "objective": {"weights": TermWeights(total_variation=0.1, mixed_picture=0.1), "mix_share": 0.5},
    },
}  # fmt: skip
INPUT = {"image_size": 32, "audio_length": 32, "num_mel_bins": 32}
BATCH = 8
STEPS = 4


def tiny_objective(
    kind: str, objective: Mapping[str, Any] = MappingProxyType({}), **model: Any
) -> PretrainingObjective[Any]:
    """The same weights at each call; settings of objective and model on top of `TINY`'s."""
    torch.manual_seed(0)
    tiny = TINY[kind]
    config = create_config(**{**INPUT, **tiny["model"], **model})
    fbank = FbankConfig(target_length=config.audio_length, num_mel_bins=config.num_mel_bins)
    settings = {**tiny["objective"], **objective}
    given = {name: value() if callable(value) else value for name, value in settings.items()}
    built = objective_kind(kind).config(kind=kind, **given)
    built.check(config)
    return build_objective(build_model(config), fbank, built)


def tiny_batch(objective: PretrainingObjective[Any], rows: list[int]) -> AVBatch:
    """Clips that are functions of their row, with as many frames as the objective's choice of ten stored ones."""
    needs = objective.needs()
    chosen = needs.train_frames(10, 0) if needs.train_frames else []
    clips = [torch.Generator().manual_seed(1000 + row) for row in rows]
    wave = [torch.randint(-9000, 9000, (needs.num_samples,), generator=g, dtype=torch.int16) for g in clips]
    shape = (len(chosen), 3, needs.image_size, needs.image_size)
    frames = [torch.randint(0, 256, shape, generator=g, dtype=torch.uint8) for g in clips]
    return AVBatch(
        ids=[f"clip{row}" for row in rows],
        rows=torch.tensor(rows),
        seeds=torch.tensor([7919 * row + 1 for row in rows]),
        waveform=torch.stack(wave),
        num_samples=torch.full((len(rows),), needs.num_samples),
        frames=torch.stack(frames),
        frame_index=torch.tensor([chosen] * len(rows)),
        num_stored=torch.full((len(rows),), 10),
    )


def gradients(kinds: list[str]) -> list[dict]:
    """For each kind the loss of this rank's part of the joint batch and every gradient, in one process group."""
    from deepspeed.utils import safe_get_full_grad

    results = []
    with distributed() as world:
        for kind in kinds:
            objective = tiny_objective(kind)
            parallel = ParallelConfig(global_batch_size=BATCH, precision="fp32")
            optimizer = build_optimizer(OptimizerConfig(), objective.model, objective.no_weight_decay())
            engine = build_engine(objective, optimizer, parallel, world)
            share = BATCH // world.size
            values = engine(tiny_batch(objective, list(range(world.rank * share, (world.rank + 1) * share))))
            engine.backward(values["loss"])
            named = {name: safe_get_full_grad(p) for name, p in objective.model.named_parameters()}
            grads = {name: grad.clone() for name, grad in named.items() if grad is not None}
            results.append({"loss": world.sum(values["loss"].detach()) / world.size, "grads": grads})
    return results


def benchmarked_steps(kinds: list[str], folder: str) -> list[float]:
    """Seconds of one step of the benchmark for each objective with its tiny preset, in one process group."""
    found = []
    with distributed() as world:
        for kind in kinds:
            options = Namespace(
                objective=kind, model=TINY[kind]["model"]["name"], batch_size=2, precision="fp32", zero_stage=0,
                overlap_comm=False, compile=False, checkpointing=False,
            )  # fmt: skip
            engine, objective = build(world, options, Path(folder))
            found.append(timed_step(engine, 0, make_batch(2, objective.needs(), world, 0), world))
    return found


def fits(runs: list[dict]) -> list[dict]:
    """Trains one run after the other in one process group; one with ``stop`` sends itself SIGTERM in that step."""
    with distributed() as world:
        return [_fit(world, **run) for run in runs]


def _fit(world: World, kind: str, run: str, zero_stage: Any = 0, stop: int = -1) -> dict:
    parallel = ParallelConfig(global_batch_size=BATCH, zero_stage=zero_stage, precision="fp32")
    train = TrainConfig(steps=STEPS, log_interval=1, checkpoint_interval=STEPS, parallel=parallel)
    objective = tiny_objective(kind)

    def loader(start: int, skipped: Collection[int]) -> Iterator[AVBatch]:
        share = BATCH // world.size
        for step in range(start, STEPS + 2):
            if step == stop and world.rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            first = step * BATCH + world.rank * share
            yield tiny_batch(objective, list(range(first, first + share)))

    trainer = make_trainer(world, Path(run), train, objective=objective, loader=loader)
    finished = trainer.fit()
    beside = {
        name: value.clone() for name, value in objective.state_dict().items() if name.split(".")[0] != "model"
    }
    return {"finished": finished, "step": trainer.step, "beside_model": beside}
