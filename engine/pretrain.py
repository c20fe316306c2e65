"""A pretraining run from its config: data, model, objective, trainer, and what is measured on held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.batch import AVBatch
from datasets.loader import evaluation_loader, train_loader
from engine.config import PretrainConfig, save_config
from engine.distributed import World
from engine.objectives.base import Objective
from engine.objectives.cav_mae import CavMae
from engine.peak import measured_peak_flops
from engine.pictures import reconstructions
from engine.retrieval import cross_modal_retrieval
from engine.runlog import RunLog, logger
from engine.trainer import Trainer, TrainingData
from models import build_model, parameter_count
from models.initialize import initialize
from models.weights import read_weights

#: Held-out clips in the pictures of reconstructions.
_PICTURED = 4


def pretrain(config: PretrainConfig, config_yaml: str, world: World) -> bool:
    """Runs pretraining, or the rest of it.

    Args:
        config: The run.
        config_yaml: The same as YAML, kept beside what is written.
        world: The processes; every rank calls this.

    Returns:
        True when finished, False when stopped on request.
    """
    run = Path(config.output_dir)
    loader = training_loader(config, world)
    num_clips = len(loader(0, ()).dataset)  # type: ignore[arg-type]  # a ClipReader
    objective = build_objective(config)
    if world.is_main:
        save_config(run, config_yaml)
        total = config.train.total_steps(num_clips)
        millions = parameter_count(objective.model) / 1e6
        logger.info(
            "%s, %.1f million parameters; %d clips, %d steps of %d; %d process(es) on %s; run %s",
            config.model.name, millions, num_clips, total, config.train.parallel.global_batch_size,
            world.size, world.device.type, run,
        )  # fmt: skip
    world.barrier()
    trainer = Trainer(
        objective,
        config.train,
        config.optimizer,
        config.schedule,
        TrainingData(num_clips, loader, config.data.max_bad_fraction),
        world,
        run,
        config_yaml,
        evaluate=HeldOut(config, world) if config.data.val else None,
        peak_flops=measured_peak_flops(world.device, config.train.parallel.uses_bf16(world.device)),
    )
    return trainer.fit()


def build_objective(config: PretrainConfig) -> CavMae:
    """The objective with its initial weights: those of ``config.init``, or drawn from ``config.seed``."""
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if config.init is not None:
        logger.info("%s", initialize(model, read_weights(config.init), config.init_allow))
    return CavMae(model, config.fbank, config.objective)


def training_loader(
    config: PretrainConfig, world: World
) -> Callable[[int, Collection[int]], DataLoader[AVBatch]]:
    """Makes the loader of this rank's micro-batches from a step on."""
    parallel = config.train.parallel

    def from_step(step: int, skipped: Collection[int]) -> DataLoader[AVBatch]:
        return train_loader(
            config.data,
            seed=config.seed,
            global_batch_size=parallel.global_batch_size,
            num_micro_batches=parallel.accumulation_steps,
            rank=world.rank,
            world_size=world.size,
            start_step=step,
            skipped_steps=sorted(skipped),
            image_size=config.model.image_size,
            num_samples=config.fbank.num_samples,
        )

    return from_step


class HeldOut:
    """What is measured and pictured on held-out clips during pretraining.

    Args:
        config: The run; ``data.val`` is set.
        world: The processes.
    """

    def __init__(self, config: PretrainConfig, world: World) -> None:
        self._config, self._world = config, world
        assert config.data.val is not None
        parallel = config.train.parallel
        self._loader = evaluation_loader(
            config.data,
            config.data.val,
            batch_size=parallel.micro_batch_size(world.size),
            rank=world.rank,
            world_size=world.size,
            image_size=config.model.image_size,
            num_samples=config.fbank.num_samples,
        )
        self._bf16 = parallel.uses_bf16(world.device)

    @torch.no_grad()
    def __call__(self, objective: Objective, step: int, log: RunLog) -> dict[str, float]:
        """Retrieval in both directions on all held-out clips; pictures of the first few."""
        assert isinstance(objective, CavMae)
        rows: list[int] = []
        parts: list[tuple[Tensor, Tensor]] = []
        pictures: dict[str, Tensor] = {}
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._bf16):
            for batch in self._loader:
                if not len(batch):
                    continue
                batch = batch.to(self._world.device)
                if not parts and self._world.is_main and objective.config.reconstruction_weight > 0:
                    pictures = reconstructions(objective, batch.first(_PICTURED))
                audio, visual = objective.model.embed(*objective.inputs(batch))
                assert audio is not None
                assert visual is not None
                parts.append((audio.float().cpu(), visual.float().cpu()))
                rows += batch.rows.tolist()
        for name, picture in pictures.items():
            log.image(f"reconstruction/{name}", picture, step)
        audio, visual = self._gather(rows, parts)
        return {f"val/{name}": value for name, value in cross_modal_retrieval(audio, visual).items()}

    def _gather(self, rows: list[int], parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Every rank's embeddings in the order of the set, the same on every rank."""
        own = (rows, *(torch.cat(column).numpy() for column in zip(*parts, strict=True))) if parts else None
        gathered = [part for part in self._world.gather_objects(own) if part is not None]
        order = np.argsort(np.concatenate([part[0] for part in gathered]))
        audio, visual = (np.concatenate([part[i] for part in gathered])[order] for i in (1, 2))
        return torch.from_numpy(audio), torch.from_numpy(visual)
