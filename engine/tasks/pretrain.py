"""A pretraining run from its config: data, model, objective, trainer, and what is measured on held-out clips."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch

from datasets.batch import AVBatch
from datasets.loading.loader import ClipLoader, ClipNeeds, TrainShare, evaluation_loader, train_loader
from datasets.loading.plan import SamplePlan
from engine.config import PretrainConfig, save_config
from engine.evaluation.features import Features, embed_set, mean_pooled
from engine.evaluation.probes import ProbeConfig, cross_validated_probe
from engine.evaluation.reconstructions import reconstructions
from engine.evaluation.retrieval import cross_modal_retrieval
from engine.objectives.base import Objective
from engine.objectives.cav_mae import CavMae
from engine.parallel.world import World
from engine.training.checkpoint import find_checkpoints
from engine.training.peak_flops import measured_peak_flops
from engine.training.runlog import RunLog, logger
from engine.training.trainer import Trainer, TrainingData
from models import build_model, parameter_count
from models.weights.initialize import initialize
from models.weights.sources import read_weights

#: Held-out clips in the pictures of reconstructions.
_PICTURED = 4
#: Held-out clips to a batch: the same in every world, so that the scores are the same too.
_HELD_OUT_BATCH = 32
#: Held-out clips that linear probes are made of: at least, and at most of a large set.
_LEAST_PROBED, _MOST_PROBED = 10, 2000


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
    num_clips = len(loader(0, ()).plan.order)
    objective = build_objective(config)
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
    # Not before the run is known to be this one's: another's config stays as it is.
    if world.is_main:
        save_config(run, config_yaml)
        millions = parameter_count(objective.model) / 1e6
        logger.info(
            "%s, %.1f million parameters; %d clips, %d steps of %d; %d process(es) on %s; run %s",
            config.model.name, millions, num_clips, trainer.total_steps, config.train.parallel.global_batch_size,
            world.size, world.device.type, run,
        )  # fmt: skip
    world.barrier()
    return trainer.fit()


def build_objective(config: PretrainConfig) -> CavMae:
    """The objective with its initial weights: those of ``config.init``, or drawn from ``config.seed``.

    A run that has a checkpoint takes all weights from there, so ``config.init`` need not exist any more.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if config.init is not None and not find_checkpoints(Path(config.output_dir)):
        logger.info("%s", initialize(model, read_weights(config.init), config.init_allow))
    return CavMae(model, config.fbank, config.objective)


def training_loader(
    config: PretrainConfig, world: World
) -> Callable[[int, Collection[int]], ClipLoader[SamplePlan]]:
    """Makes the loader of this rank's micro-batches from a step on."""
    parallel = config.train.parallel

    def from_step(step: int, skipped: Collection[int]) -> ClipLoader[SamplePlan]:
        share = TrainShare(
            seed=config.seed,
            global_batch_size=parallel.global_batch_size,
            num_micro_batches=parallel.accumulation_steps,
            rank=world.rank,
            world_size=world.size,
            start_step=step,
            skipped_steps=sorted(skipped),
        )
        return train_loader(config.data, _needs(config), share)

    return from_step


def _needs(config: PretrainConfig) -> ClipNeeds:
    return ClipNeeds(image_size=config.model.image_size, num_samples=config.fbank.num_samples)


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
            _needs(config),
            batch_size=_HELD_OUT_BATCH,
            rank=world.rank,
            world_size=world.size,
            whole_batches=True,
        )
        self._bf16 = parallel.uses_bf16(world.device)

    @torch.no_grad()
    def __call__(self, objective: Objective, step: int, log: RunLog) -> dict[str, float]:
        """Retrieval in both directions, linear probes where there are labels; pictures of the first clips."""
        assert isinstance(objective, CavMae)
        batches = self._pictured(objective, step, log)
        embed = mean_pooled(objective.model.encoder, objective.inputs)
        features = embed_set(embed, batches, self._world, self._config.data.max_bad_fraction, self._bf16)
        values = None if features is None else self._measure(features)
        values = self._world.broadcast_object(values)
        assert isinstance(values, dict)
        return values

    def _pictured(self, objective: CavMae, step: int, log: RunLog) -> Iterator[AVBatch]:
        """The held-out batches; draws reconstructions of the first."""
        wanted = self._world.is_main and objective.config.reconstruction_weight > 0
        for batch in self._loader:
            if wanted and len(batch):
                first = batch.first(_PICTURED).to(self._world.device)
                for name, picture in reconstructions(objective, first).items():
                    log.image(f"reconstruction/{name}", picture, step)
                wanted = False
            yield batch

    @staticmethod
    def _measure(features: Features) -> dict[str, float]:
        values = cross_modal_retrieval(features.streams["audio"], features.streams["visual"])
        if features.labels is not None and features.labels.any() and len(features.ids) >= _LEAST_PROBED:
            chosen = torch.arange(0, len(features.ids), -(-len(features.ids) // _MOST_PROBED))
            for stream, rows in features.streams.items():
                found = cross_validated_probe(rows[chosen], features.labels[chosen], ProbeConfig())
                values |= {f"linear_{stream}_{name}": value for name, value in found.items()}
        return {f"val/{name}": value for name, value in values.items()}
