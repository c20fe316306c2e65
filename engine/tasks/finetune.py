"""A fine-tuning run from its config: encoders, head, trainer, and the evaluation at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from datasets.atomic import write_atomically
from datasets.loading.joined import training_order
from engine.config import save_config
from engine.evaluation.final import FinalEvaluation
from engine.evaluation.predictions import predict
from engine.evaluation.scores import summary_scores
from engine.objectives.base import Objective
from engine.objectives.classification import Classification
from engine.parallel.world import World
from engine.signals import STOP
from engine.tasks.clips import fingerprint, training_clips
from engine.tasks.encoder_weights import has_head, load_classifier_weights, load_encoder_weights
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.labelled_sets import (
    LabelledSet,
    check_held_out,
    check_training_labels,
    clip_needs,
    held_out_loader,
    open_training_sets,
)
from engine.tasks.probe_head import fit_head
from engine.training.checkpoint import Checkpoint, CheckpointError, find_checkpoints, load_weights
from engine.training.peak_flops import measured_peak_flops
from engine.training.runlog import RunLog, logger
from engine.training.status import update_status
from engine.training.stop import StoppedError, stop_if_requested
from engine.training.trainer import Trainer, TrainingData
from engine.training.weight_average import WeightAverage
from models import AudioVisualClassifier, parameter_count
from models.weights.classes import CLASSES, kept_classes


def finetune(config: FinetuneConfig, config_yaml: str, world: World) -> bool:
    """Runs fine-tuning, or the rest of it, and evaluates; with ``eval_only`` only the latter.

    Args:
        config: The run.
        config_yaml: The same as YAML, kept beside what is written.
        world: The processes; every rank calls this.

    Returns:
        True when finished, False when stopped on request.

    Raises:
        ValueError: Labels, classes or weights do not fit.
    """
    run = Path(config.output_dir)
    sets = open_training_sets(config)
    train = sets[0]
    check_held_out(config, train)
    if config.eval_only:
        evaluate_only(config, config_yaml, world, train, run)
        if world.is_main:
            save_config(run / "evaluation", config_yaml)
        return True
    check_training_labels(config, sets)
    check_classes(run, train)
    objective = build_classification(config, train)
    if config.fit_head and not find_checkpoints(run):
        fit_head(config, objective.to(world.device), train, world)
    trainer = build_trainer(config, config_yaml, world, sets, objective)
    # Not before the run is known to be this one's: another's files stay as they are.
    if world.is_main:
        keep_classes(run, train)
        save_config(run, config_yaml)
        log_plan(config, world, objective, trainer, run)
    world.barrier()
    if not trainer.fit():
        return False
    if config.evaluation_shards is not None:
        average = weight_average(config, trainer.data.num_clips)
        mean = average.at(trainer.total_steps) if average is not None and world.is_main else None
        parts = (
            {"last": None, "averaged": mean} if world.broadcast_object(mean is not None) else {"last": None}
        )
        try:
            evaluate_at_end(config, config_yaml, world, train, objective, parts, trainer.total_steps)
        except StoppedError as stopped:
            logger.info("%s; run the same command again to go on", stopped)
            return False
    return True


def evaluate_at_end(
    config: FinetuneConfig,
    config_yaml: str,
    world: World,
    train: LabelledSet,
    objective: Classification,
    parts: Mapping[str, Path | None],
    step: int,
) -> None:
    """Evaluates the weights at the end and their mean, unless an earlier attempt has done so.

    Args:
        config: The run.
        config_yaml: The same as YAML.
        world: The processes; every rank calls this.
        train: The training set.
        objective: With the weights at the end.
        parts: By name, which weights to evaluate; None are those of ``objective``.
        step: Steps taken.

    Raises:
        StoppedError: A signal has come. What is done is kept.
    """
    run = Path(config.output_dir)
    final = FinalEvaluation(config, train, world, run, step, config_yaml)
    for done, (name, weights) in enumerate(parts.items()):
        if world.is_main:
            update_status(run, state="evaluating", phase="evaluating", evaluated=done)
        if final.is_done(name):
            logger.info("%s: evaluated before, see %s", name, run / "evaluation" / name)
            continue
        stop_if_requested(world, f"before the evaluation of the {name} weights")
        weights = world.broadcast_object(weights)
        if weights is not None:
            objective.model.load_state_dict(load_weights(Path(str(weights))))
        final(objective, name)


def build_trainer(
    config: FinetuneConfig,
    config_yaml: str,
    world: World,
    sets: Sequence[LabelledSet],
    objective: Classification,
) -> Trainer:
    """The trainer, at the newest checkpoint of the run.

    Raises:
        ValueError: ``config.averaging`` asks for what this run can't give.
    """
    parallel = config.train.parallel
    tables, weights = [train.table for train in sets], [part.weight for part in config.data.train_sets]
    order = training_order(tables, weights, config.sampling, config.seed, config.data.shuffle_window)
    places = len(order)
    average = weight_average(config, places)
    loader = partial(training_clips, config, world, clip_needs(config), sampling=config.sampling)
    return Trainer(
        objective,
        config,
        TrainingData(places, loader, config.data.max_bad_fraction, fingerprint(config.data)),
        world,
        config_yaml,
        evaluate=HeldOutScores(config, sets[0], world)
        if config.data.val and config.train.evaluates
        else None,
        hooks=() if average is None else (average,),
        peak_flops=measured_peak_flops(world.device, parallel.uses_bf16(world.device)),
    )


def weight_average(config: FinetuneConfig, places: int) -> WeightAverage | None:
    """What keeps the mean of the weights, for ``places`` clips an epoch; None where there is to be none."""
    if config.averaging.first_epoch is None:
        return None
    steps_per_epoch = places / config.train.parallel.global_batch_size
    return WeightAverage(config.averaging, Path(config.output_dir), steps_per_epoch)


def build_classification(config: FinetuneConfig, train: LabelledSet) -> Classification:
    """The objective with its initial weights: encoders (and head) of ``config.init``, the rest from the seed.

    A run that has a checkpoint takes all weights from there, so ``config.init`` need not exist any more.

    Raises:
        WeightsError: The encoder of ``config.init`` does not fit, or with ``init_head`` its head.
    """
    torch.manual_seed(config.seed)
    model = AudioVisualClassifier(
        config.model, len(train.classes), pool_separate=config.objective.pool_separate
    )
    if not find_checkpoints(Path(config.output_dir)):
        if config.init is None:
            logger.info("no init: the encoders are randomly initialised")
        elif config.init_head:
            load_classifier_weights(config.init, model, config.fbank, train.classes, config.init_allow)
        else:
            load_encoder_weights(config.init, model.encoder, config.fbank, config.init_allow)
    return Classification(model, config.fbank, config.objective)


def evaluate_only(
    config: FinetuneConfig, config_yaml: str, world: World, train: LabelledSet, run: Path
) -> None:
    """Evaluates the run's own newest and averaged weights, or ``config.init`` where the run has none.

    Raises:
        CheckpointError: There are no weights.
        WeightsError: They do not fit.
    """
    checkpoints = find_checkpoints(run)
    step = checkpoints[-1].state.step if checkpoints else 0
    STOP.started()
    sources = _weights_of(config, run, checkpoints)
    if sources:
        check_classes(run, train)
    elif config.init is not None:
        sources = {"init": config.init}
    else:
        raise CheckpointError(f"{run} has no checkpoint to evaluate; give one with init")
    for name, source in sources.items():
        model = AudioVisualClassifier(
            config.model, len(train.classes), pool_separate=config.objective.pool_separate
        )
        classify, allow = has_head(source), config.init_allow if name == "init" else ()
        if classify:
            load_classifier_weights(source, model, config.fbank, train.classes, allow)
        else:
            logger.info("%s has no head: only its frozen features are measured", source)
            load_encoder_weights(source, model.encoder, config.fbank, allow)
        objective = Classification(model, config.fbank, config.objective).to(world.device)
        FinalEvaluation(config, train, world, run, step, config_yaml)(objective, name, classify=classify)


def _weights_of(config: FinetuneConfig, run: Path, checkpoints: list[Checkpoint]) -> dict[str, str]:
    found = {"last": str(checkpoints[-1].path)} if checkpoints else {}
    means = sorted((run / "average").glob("epoch_*.safetensors"))
    averages = config.averaging.first_epoch is not None
    return found | ({"averaged": str(means[-1])} if means and averages else {})


def keep_classes(run: Path, train: LabelledSet) -> None:
    """Writes the vocabulary beside the run, as JSON: a class's name may hold whatever ends a line."""
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / CLASSES, json.dumps(train.classes, ensure_ascii=False, indent=1) + "\n")


def check_classes(run: Path, train: LabelledSet) -> None:
    """Raises ``ValueError`` where the run was trained on another vocabulary."""
    classes = kept_classes(run)
    if classes is not None and classes != train.classes:
        raise ValueError(
            f"{run} was trained on other classes ({run / CLASSES}) than {train.location} has; use another output_dir"
        )


def log_plan(
    config: FinetuneConfig, world: World, objective: Classification, trainer: Trainer, run: Path
) -> None:
    """Tells the log what is trained on what."""
    model = objective.model
    everything, trained = parameter_count(model, trainable_only=False), parameter_count(model)
    logger.info(
        "%s on %s, %d classes; %s of %s weights are trained; frozen or not in use: %s",
        config.model.name, config.objective.modalities, model.head.out_features,
        f"{trained:,}", f"{everything:,}", ", ".join(frozen_parts(model)) or "none",
    )  # fmt: skip
    logger.info(
        "%d clips an epoch, %d steps of %d; %d process(es) on %s; run %s",
        trainer.data.num_clips, trainer.total_steps, config.train.parallel.global_batch_size,
        world.size, world.device.type, run,
    )  # fmt: skip


def frozen_parts(model: nn.Module) -> list[str]:
    """The parts of ``model`` that get no gradient, such as ``encoder.norm.audio``, each the largest that is whole."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return [""]
    found = [name for name, parameter in model.named_parameters(recurse=False) if not parameter.requires_grad]
    for name, part in model.named_children():
        if next(part.parameters(), None) is not None:
            found += [f"{name}.{inner}".rstrip(".") for inner in frozen_parts(part)]
    return found


class HeldOutScores:
    """What is measured on ``data.val`` during training: with the middle frame and all modalities trained on.

    Args:
        config: The run; ``data.val`` is set.
        train: The training set.
        world: The processes.
    """

    def __init__(self, config: FinetuneConfig, train: LabelledSet, world: World) -> None:
        assert config.data.val is not None
        self._config, self._world = config, world
        self._loader = held_out_loader(config, train, config.data.val, world, every_frame=False)

    def __call__(self, objective: Objective, step: int, log: RunLog) -> dict[str, float]:
        """mAP, mAUC, d′, top-1 and top-5."""
        assert isinstance(objective, Classification)
        bf16 = self._config.train.parallel.uses_bf16(self._world.device)
        predictions = predict(
            objective, self._loader, self._world, self._config.data, bf16=bf16, missing=False
        )
        (scores,) = predictions.scores.values()
        return {f"val/{name}": value for name, value in summary_scores(scores, predictions.labels).items()}
