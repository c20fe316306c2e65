"""Fine-tuning runs small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from support.training import small_model_config

from datasets.loading.loader import DataConfig
from datasets.loading.sampling import SamplingConfig, subset_rows
from engine.checkpoints.weights import load_weights
from engine.evaluation.features import embed_set
from engine.evaluation.predictions import predict
from engine.objectives.classification import ClassificationConfig, LossName
from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.world import World, distributed
from engine.tasks.classifier_task import build_classification
from engine.tasks.finetune import finetune
from engine.tasks.finetune_config import EvaluationConfig, FinetuneConfig
from engine.tasks.labelled_sets import held_out_loader, open_labelled
from engine.tasks.probe_head import fit_head
from engine.training.optimizer import OptimizerConfig
from engine.training.schedule import ScheduleConfig
from engine.training.train_config import TrainConfig
from engine.training.weight_average import AveragingConfig
from models import FbankConfig

BATCH = 6


def small_config(
    shards: str,
    run: str,
    *,
    steps: int = 4,
    cosine: bool = False,
    zero_stage: Literal[0, 1, 2] = 0,
    sampling: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    fit_head: bool = False,
    **options: Any,
) -> FinetuneConfig:
    """Clips of 3 classes through a very small model; ``options`` are those of the objective."""
    model = small_model_config()
    parallel = ParallelConfig(global_batch_size=BATCH, precision="fp32", zero_stage=zero_stage)
    settings: dict[str, Any] = {"steps": steps, "log_interval": 1, "checkpoint_interval": 3}
    halving = (
        ScheduleConfig()
        if cosine
        else ScheduleConfig(kind="halving", halve_from_epoch=1, halve_every_epochs=0.5)
    )
    return FinetuneConfig(
        data=DataConfig(shards, shards, num_workers=0),
        output_dir=run,
        fit_head=fit_head,
        model=model,
        fbank=FbankConfig(target_length=model.audio_length, num_mel_bins=model.num_mel_bins),
        sampling=SamplingConfig(**({"balanced": True, "mixup": 0.5} | (sampling or {}))),
        objective=ClassificationConfig(**({"loss": LossName.cross_entropy, "head_lr_ratio": 50.0} | options)),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=halving,
        train=TrainConfig(**(settings | (train or {})), parallel=parallel),
        averaging=AveragingConfig(first_epoch=1),
        evaluation=EvaluationConfig(
            **({"batch_size": 4, "bootstrap": 20, "pictures": False} | (evaluation or {}))
        ),
    )


def tune(runs: list[dict]) -> list[bool]:
    """Fine-tuning runs one after the other in one process group; each given by the arguments of `small_config`."""
    with distributed() as world:
        return [finetune(small_config(**run), "model: small\n", world) for run in runs]


def predictions(shards: str) -> dict | None:
    """What an untrained classifier says of a set, over all ranks; rank 0 has it."""
    with distributed() as world:
        return predict_here(shards, world)


def predict_here(shards: str, world: World) -> dict | None:
    torch.set_num_threads(1)
    config = small_config(shards, "unused")
    train = open_labelled(config, shards)
    objective = build_classification(config, train).eval()
    loader = held_out_loader(config, train, shards, world, every_frame=True)
    found = predict(objective, loader, world, config.data)
    if found is None:
        return None
    return {"ids": found.ids, "rows": found.rows, "labels": found.labels, "scores": found.scores}


def fitted_head(shards: str, run: str) -> dict:
    """The head fitted to 15 of the clips, the features of all of them, and a run of one step that begins so."""
    torch.set_num_threads(1)
    with distributed() as world:
        config = small_config(shards, run, steps=1, sampling={"max_clips": 15}, fit_head=True)
        config = replace(config, averaging=AveragingConfig())  # a step is no epoch
        train = open_labelled(config, shards)
        objective = build_classification(config, train)
        fit_head(config, objective, train, world)
        features = embed_set(
            lambda batch: {"head": objective.head_features(batch)},
            held_out_loader(config, train, shards, world, every_frame=False),
            world,
            0.0,
        )
        assert objective.training
        assert finetune(config, "model: small\n", world)
        return {
            "rows": subset_rows(train.table, 15, config.seed).tolist(),
            "features": None if features is None else features.streams["head"],
            "labels": None if features is None else features.labels,
            "weight": objective.model.head.weight.detach(),
            "bias": objective.model.head.bias.detach(),
            "after_a_step": load_weights(Path(run))["head.weight"],
        }
