"""A run on labelled clips from its config: training, the evaluation at its end, and its trained model for others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from atomic import write_atomically
from datasets.loading.joined import training_order
from engine.checkpoints.folder import Checkpoint, CheckpointError, find_checkpoints
from engine.checkpoints.weights import load_weights
from engine.config import parse_config, save_config
from engine.objectives.base import Objective
from engine.parallel.world import World
from engine.records.runlog import logger
from engine.records.status import update_status
from engine.signals import STOP
from engine.tasks.classifier_task import ClassifierTask
from engine.tasks.clips import fingerprint, training_clips
from engine.tasks.finetune_config import LabelledConfig
from engine.tasks.fusion_task import FusionTask
from engine.tasks.labelled_sets import LabelledSet, check_held_out, open_labelled, open_training_sets
from engine.tasks.labelled_task import LabelledTask
from engine.tasks.predictor import Predictor
from engine.tasks.preparation import keep_preparation
from engine.training.best_weights import BestWeights, best_file
from engine.training.hooks import Hook
from engine.training.peak_flops import measured_peak_flops
from engine.training.stop import StoppedError, stop_if_requested
from engine.training.trainer import Evaluate, Trainer, TrainingData
from engine.training.weight_average import WeightAverage
from models.weights.classes import CLASSES, kept_classes

#: By ``objective.kind``.
TASKS: dict[str, type[LabelledTask[Any, Any]]] = {
    "classification": ClassifierTask,
    "fusion": FusionTask,
}


def labelled_task(config: LabelledConfig) -> LabelledTask[Any, Any]:
    """What is special about a run of this kind."""
    return TASKS[config.objective.kind](config)


def finetune(config: LabelledConfig, config_yaml: str, world: World) -> bool:
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
    run, task = Path(config.output_dir), labelled_task(config)
    sets = open_training_sets(config)
    train = sets[0]
    check_held_out(config, train)
    if config.eval_only:
        evaluate_only(config, config_yaml, world, train, run)
        if world.is_main:
            save_config(run / "evaluation", config_yaml)
        return True
    task.check_labels(sets)
    world.from_main(lambda: check_classes(run, train))
    resumed = world.from_main(lambda: bool(find_checkpoints(run)))
    objective = task.build(sets, resumed, world)
    if not resumed:
        task.begin(objective, train, world)
    trainer = build_trainer(task, config_yaml, world, sets, objective)
    # Not before the run is known to be this one's: another's files stay as they are.
    if world.is_main:
        keep_classes(run, train)
        keep_preparation(run, train.index)
        task.keep(objective)
        save_config(run, config_yaml)
        log_plan(task, world, objective, trainer)
    world.barrier()
    if not trainer.fit():
        return False
    if config.evaluation_shards is not None:
        parts = world.from_main(lambda: finished_weights(config, trainer.data.num_clips, trainer.total_steps))
        try:
            evaluate_at_end(task, config_yaml, world, train, objective, parts, trainer.total_steps)
        except StoppedError as stopped:
            logger.info("%s; run the same command again to go on", stopped)
            return False
    return True


def finished_weights(config: LabelledConfig, places: int, step: int) -> dict[str, Path | None]:
    """What is evaluated at the end, by name; None are the weights at hand.

    Args:
        config: The run.
        places: Clips an epoch.
        step: Steps taken.
    """
    average, best = weight_average(config, places), best_file(Path(config.output_dir))
    mean = None if average is None else average.at(step)
    found: dict[str, Path | None] = {"last": None}
    found |= {} if mean is None else {"averaged": mean}
    return found | ({"best": best} if best is not None and config.best is not None else {})


def evaluate_at_end(
    task: LabelledTask[Any, Any],
    config_yaml: str,
    world: World,
    train: LabelledSet,
    objective: Objective[Any],
    parts: Mapping[str, Path | None],
    step: int,
) -> None:
    """Evaluates the weights at the end, their mean and the best, unless an earlier attempt has done so.

    Args:
        task: The run's.
        config_yaml: Its config as YAML.
        world: The processes; every rank calls this.
        train: The training set.
        objective: With the weights at the end.
        parts: By name, which weights to evaluate; None are those of ``objective``.
        step: Steps taken.

    Raises:
        StoppedError: A signal has come. What is done is kept.
    """
    run = task.run
    final = task.final(objective, train, world, step, config_yaml)
    for done, (name, weights) in enumerate(parts.items()):
        if world.is_main:
            update_status(run, state="evaluating", phase="evaluating", evaluated=done)
        if final.is_done(name):
            logger.info("%s: evaluated before, see %s", name, run / "evaluation" / name)
            continue
        stop_if_requested(world, f"before the evaluation of the {name} weights")
        if weights is not None:
            objective.model.load_state_dict(load_weights(weights))
        with torch.compiler.set_stance("force_eager"):  # its shapes are not those of training
            final(objective, name)


def build_trainer(
    task: LabelledTask[Any, Any],
    config_yaml: str,
    world: World,
    sets: Sequence[LabelledSet],
    objective: Objective[Any],
) -> Trainer:
    """The trainer, at the newest checkpoint of the run.

    Raises:
        ValueError: ``config.averaging`` asks for what this run can't give.
    """
    config = task.config
    parallel = config.train.parallel
    tables, weights = [train.table for train in sets], [part.weight for part in config.data.train_sets]
    order = training_order(tables, weights, config.sampling, config.seed, config.data.shuffle_window)
    places = len(order)
    average = weight_average(config, places)
    loader = partial(training_clips, config, world, task.needs(objective), sampling=config.sampling)
    evaluate: Evaluate | None = None
    hooks: list[Hook] = [] if average is None else [average]
    if config.data.val and config.train.evaluates:
        evaluate = task.held_out(objective, sets[0], world)
        if config.best is not None:
            measured_on = open_labelled(config, config.data.val).index.fingerprint
            evaluate = BestWeights(config.best, measured_on, task.run, evaluate, world.is_main)
            hooks.append(evaluate)
    return Trainer(
        objective,
        config,
        TrainingData(places, loader, config.data.max_bad_fraction, fingerprint(config.data, world)),
        world,
        config_yaml,
        evaluate=evaluate,
        hooks=hooks,
        peak_flops=measured_peak_flops(world.device, parallel.uses_bf16(world.device)),
    )


def weight_average(config: LabelledConfig, places: int) -> WeightAverage | None:
    """What keeps the mean of the weights, for ``places`` clips an epoch; None where there is to be none."""
    if config.averaging.first_epoch is None:
        return None
    steps_per_epoch = places / config.train.parallel.global_batch_size
    return WeightAverage(config.averaging, Path(config.output_dir), steps_per_epoch)


def evaluate_only(
    config: LabelledConfig, config_yaml: str, world: World, train: LabelledSet, run: Path
) -> None:
    """Evaluates the run's own newest and averaged weights, or ``config.init`` where the run has none.

    Raises:
        CheckpointError: There are no weights.
        WeightsError: They do not fit.
    """
    task = labelled_task(config)
    checkpoints = world.from_main(lambda: find_checkpoints(run))
    step = checkpoints[-1].state.step if checkpoints else 0
    STOP.started()
    sources = world.from_main(lambda: _weights_of(config, run, checkpoints))
    own = bool(sources)
    if own:
        world.from_main(lambda: check_classes(run, train))
    elif config.init is not None:
        sources = {"init": config.init}
    else:
        raise CheckpointError(f"{run} has no checkpoint to evaluate; give one with init")
    for name, source in sources.items():
        objective, classify = task.trained(source, own, train, world)
        objective = objective.to(world.device)
        task.final(objective, train, world, step, config_yaml)(objective, name, classify=classify)


def _weights_of(config: LabelledConfig, run: Path, checkpoints: list[Checkpoint]) -> dict[str, str]:
    found = {"last": str(checkpoints[-1].path)} if checkpoints else {}
    means = sorted((run / "average").glob("epoch_*.safetensors"))
    averages = config.averaging.first_epoch is not None
    found |= {"averaged": str(means[-1])} if means and averages else {}
    best = best_file(run)
    return found | ({"best": str(best)} if best is not None and config.best is not None else {})


def open_predictor(source: Path) -> Predictor:
    """The trained model of a run on labelled clips, whatever its kind; needs nothing but the run's folder.

    Args:
        source: The run, whose newest checkpoint is taken, or a checkpoint or file of weights within it; of the folder
            ``best`` the best weights are taken.

    Returns:
        On the CPU, in evaluation mode.

    Raises:
        ValueError: There are no weights, or the run was not trained on labels.
    """
    run = run_folder(source)
    best = best_file(run) if source.resolve() == (run / "best").resolve() else None
    classes = kept_classes(run)
    assert classes is not None
    words = ["--config", str(run / "config.yaml"), f"--output_dir={run}", "--eval_only=false"]
    config, _ = parse_config(LabelledConfig, str(run), [*words, "--allow_commands_in_files"])
    predictor = labelled_task(config).predictor(best or source, classes).eval()
    predictor.batch_size, predictor.parallel = config.evaluation.batch_size, config.train.parallel
    return predictor


def run_folder(source: Path) -> Path:
    """The folder of the run on labelled clips that something is or lies in.

    Raises:
        ValueError: It is in none.
    """
    for path in (source, *source.parents):
        if kept_classes(path) is not None:
            return path
    raise ValueError(
        f"{source} is no run of main_finetune.py and in none: it has no {CLASSES}. Only what was trained on labels "
        "can predict them"
    )


def keep_classes(run: Path, train: LabelledSet) -> None:
    """Writes the vocabulary beside the run, as JSON: a class's name may hold whatever ends a line."""
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / CLASSES, json.dumps(train.classes, ensure_ascii=False, indent=1) + "\n")


def check_classes(run: Path, train: LabelledSet) -> None:
    """Raises ``ValueError`` where the run was trained on another vocabulary."""
    classes = kept_classes(run)
    if classes is not None and classes != train.classes:
        raise ValueError(
            f"{run} was trained on other classes ({run / CLASSES}) than {train.shown} has; use another output_dir"
        )


def log_plan(task: LabelledTask[Any, Any], world: World, objective: Objective[Any], trainer: Trainer) -> None:
    """Tells the log what is trained on what."""
    logger.info("%s", task.summary(objective))
    logger.info(
        "%d clips an epoch, %d steps of %d; %d process(es) on %s; run %s",
        trainer.data.num_clips, trainer.total_steps, task.config.train.parallel.global_batch_size,
        world.size, world.device.type, task.run,
    )  # fmt: skip
