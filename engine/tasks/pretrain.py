"""A pretraining run from its config: data, objective, trainer, and what is measured on held-out clips."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.batch import AVBatch
from engine.checkpoints.folder import find_checkpoints
from engine.config import PretrainConfig, save_config
from engine.evaluation.features import Features, embed_set
from engine.evaluation.probes import ProbeConfig, cross_validated_probe
from engine.objectives.base import PretrainingObjective
from engine.objectives.registry import build_objective
from engine.parallel.world import World
from engine.records.runlog import RunLog, logger
from engine.tasks.clips import fingerprint, held_out_clips, training_clips
from engine.training.hooks import Hook
from engine.training.peak_flops import measured_peak_flops
from engine.training.trainer import Trainer, TrainingData
from models import build_model, parameter_count
from models.weights.initialize import initialize
from models.weights.sources import read_weights

#: Held-out clips in pictures.
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
    run, parallel = Path(config.output_dir), config.train.parallel
    resumed = world.from_main(lambda: bool(find_checkpoints(run)))
    objective = initial_objective(config, resumed)
    objective.keep_in(run, resumed, world)
    loader = partial(training_clips, config, world, objective.needs())
    num_clips = len(loader(0, ()).plan.order)
    held_out = HeldOutClips(config, objective, world) if config.data.val else None
    hooks: list[Hook] = []
    if held_out is not None and config.picture_interval:
        hooks.append(HeldOutPictures(held_out, objective, config.picture_interval, lambda: trainer.log))
    trainer = Trainer(
        objective,
        config,
        TrainingData(num_clips, loader, config.data.max_bad_fraction, fingerprint(config.data, world)),
        world,
        config_yaml,
        evaluate=held_out,
        hooks=hooks,
        peak_flops=measured_peak_flops(world.device, parallel.uses_bf16(world.device)),
    )
    # Not before the run is known to be this one's: another's config stays as it is.
    if world.is_main:
        save_config(run, config_yaml)
        millions = parameter_count(objective.model) / 1e6
        logger.info(
            "%s of %s, %.1f million parameters; %d clips, %d steps of %d; %d process(es) on %s; run %s",
            config.objective.kind, config.model.name, millions, num_clips, trainer.total_steps,
            parallel.global_batch_size, world.size, world.device.type, run,
        )  # fmt: skip
    world.barrier()
    return trainer.fit()


def initial_objective(config: PretrainConfig, resumed: bool) -> PretrainingObjective[Any]:
    """The objective with its initial weights: those of ``config.init``, or random ones from ``config.seed``.

    Args:
        config: The run.
        resumed: Whether it has a checkpoint, from which all weights will be taken: ``config.init`` need not exist.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if config.init is not None and not resumed:
        logger.info("%s", initialize(model, read_weights(config.init), config.init_allow))
    return build_objective(model, config.fbank, config.objective)


class HeldOutClips:
    """What is measured and pictured on held-out clips during pretraining.

    Args:
        config: The run; ``data.val`` is set.
        objective: What reads them.
        world: The processes.
    """

    def __init__(self, config: PretrainConfig, objective: PretrainingObjective[Any], world: World) -> None:
        self._config, self._world = config, world
        assert config.data.val is not None
        self._loader = held_out_clips(config, world, objective.needs(), config.data.val, _HELD_OUT_BATCH)
        self._bf16 = config.train.parallel.uses_bf16(world.device)
        self._pictured: int | None = None

    @torch.no_grad()
    def __call__(self, objective: PretrainingObjective[Any], step: int, log: RunLog) -> dict[str, float]:
        """What the objective measures, linear probes where there are labels; pictures of the first clips."""
        if self._world.is_main:
            self.picture(objective, step, log)
        budget = self._config.data.max_bad_fraction
        features = embed_set(objective.embed, self._loader, self._world, budget, self._bf16)
        # On the device: the other ranks wait.
        values = None if features is None else _measure(objective, features.to(self._world.device))
        shared = self._world.from_main(lambda: values)
        assert shared is not None
        return shared

    @torch.no_grad()
    def picture(self, objective: PretrainingObjective[Any], step: int, log: RunLog) -> None:
        """Draws the first clips, once for a step; the main rank calls it, of an objective in evaluation mode."""
        if self._first is None or step == self._pictured:
            return
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._bf16):
            pictures = objective.pictures(self._first.to(self._world.device))
        for name, picture in pictures.items():
            log.image(name, picture, step)
        self._pictured = step

    @cached_property
    def _first(self) -> AVBatch | None:
        batch = next((batch for batch in self._loader if len(batch)), None)
        return None if batch is None else batch.first(_PICTURED)


def _measure(objective: PretrainingObjective[Any], features: Features) -> dict[str, float]:
    values = objective.measure(features)
    if features.labels is not None and features.labels.any() and len(features.ids) >= _LEAST_PROBED:
        chosen = torch.arange(0, len(features.ids), -(-len(features.ids) // _MOST_PROBED))
        for stream, rows in objective.probed(features).items():
            found = cross_validated_probe(rows[chosen], features.labels[chosen], ProbeConfig())
            values |= {f"linear_{stream}_{name}": value for name, value in found.items()}
    return {f"val/{name}": value for name, value in values.items()}


class HeldOutPictures:
    """Pictures of held-out clips between evaluations; see `engine.training.hooks.Hook`.

    Args:
        clips: What draws them.
        objective: What is trained.
        interval: Steps between pictures.
        log: Where they go: the trainer's, which is there when it trains.
    """

    def __init__(
        self,
        clips: HeldOutClips,
        objective: PretrainingObjective[Any],
        interval: int,
        log: Callable[[], RunLog],
    ) -> None:
        self._clips, self._objective, self._interval, self._log = clips, objective, interval, log

    def check(self, step: int, total_steps: int) -> None:
        """See `Hook.check`: there is nothing that could be wrong."""

    def discard_after(self, step: int) -> None:
        """See `Hook.discard_after`: a picture of a step that comes again is written again."""

    def due(self, step: int) -> bool:
        """See `Hook.due`."""
        return step % self._interval == 0

    def update(self, model: nn.Module, step: int) -> None:
        """See `Hook.update`."""
        self._objective.eval()
        self._clips.picture(self._objective, step, self._log())
        self._objective.train()
