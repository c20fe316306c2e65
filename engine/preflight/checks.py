"""Checks a run before it waits in a queue: config, data, disk, batch, and what it will need.

``python -m launch.preflight --nodes 4 --processes 8 -- main_pretrain.py --config …`` runs it, on any
machine: nothing is computed on a GPU and the model is never allocated. Exit status 0: may be submitted; 1:
something is wrong, and the report says what; 2: it is the config itself.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from datasets.loading.loader import DataConfig, open_store
from datasets.shards.tar import ShardError
from engine.config import PretrainConfig, RunConfig, parse_config
from engine.objectives.base import Objective
from engine.objectives.registry import build_objective
from engine.preflight.estimates import state_bytes
from engine.tasks.finetune import labelled_task
from engine.tasks.finetune_config import LabelledConfig
from engine.tasks.labelled_sets import check_held_out, open_training_sets
from engine.training.train_config import TrainConfig
from home_paths import command_line
from models import Workload, build_model, parameter_count
from terminal import show_control_characters

_GB = 1e9


@dataclass(frozen=True)
class Cluster:
    """What the run is to be given.

    Attributes:
        nodes: Number of nodes.
        processes: Processes, and GPUs, on each.
        memory_gb: Memory of a GPU in 10⁹ bytes; 0 where there is none, to be left unjudged.
        tflops: Peak of a GPU in 10¹² FLOP/s, at the run's precision; 0 where there is none.
        mfu: Share of that peak that the training reaches.
    """

    nodes: int = 1
    processes: int = 1
    memory_gb: float = 80.0
    tflops: float = 312.0
    mfu: float = 0.3

    @property
    def world_size(self) -> int:
        """Processes of all nodes."""
        return self.nodes * self.processes


@dataclass
class Report:
    """Lines for people, and what is wrong."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def line(self, topic: str, text: str) -> None:
        """Adds a line about ``topic``."""
        self.lines.append(f"  {topic:<12}{text}")

    def problem(self, topic: str, text: str) -> None:
        """Adds a line that makes the run unfit to be submitted."""
        self.lines.append(f"! {topic:<12}{text}")
        self.problems.append(text)

    def __str__(self) -> str:
        end = (
            f"{len(self.problems)} problem" + "s" * (len(self.problems) > 1)
            if self.problems
            else "nothing stands against submitting this run"
        )
        return "\n".join([*self.lines, end])


@dataclass(frozen=True)
class PlannedRun:
    """What the checks must know of a run, whatever it trains.

    Attributes:
        data: Its sets.
        train: Its steps, batch and parallelism.
        output_dir: Its folder.
        parameters: Of the model, and of what the objective holds beside it.
        trainable: Those of them that are trained.
        workload: What one clip costs in a training step.
    """

    data: DataConfig
    train: TrainConfig
    output_dir: Path
    parameters: int
    trainable: int
    workload: Workload


def planned_pretraining(config: PretrainConfig) -> PlannedRun:
    """What a pretraining run will need."""
    with FakeTensorMode():
        objective = build_objective(build_model(config.model), config.fbank, config.objective)
    return _planned(config, objective)


def planned_finetuning(config: LabelledConfig) -> PlannedRun:
    """What a fine-tuning run will need."""
    return _planned(config, labelled_task(config).sketch())


def _planned(config: RunConfig, objective: Objective[Any]) -> PlannedRun:
    parameters = parameter_count(objective, trainable_only=False), parameter_count(objective.model)
    workload = objective.workload(_uses_bf16(config.train))
    return PlannedRun(config.data, config.train, Path(config.output_dir), *parameters, workload)


def check(run: PlannedRun, cluster: Cluster) -> Report:
    """All checks and estimates."""
    report = Report()
    clips = _check_data(run.data, run.train, report)
    micro_batch = _check_batch(run.train, cluster, report)
    report.line("model", f"{run.parameters / 1e6:.1f} million parameters")
    _check_disk(run, report)
    if micro_batch:
        _check_memory(run, micro_batch, cluster, report)
    if clips:
        _estimate_cost(run, clips, cluster, report)
    return report


def _uses_bf16(train: TrainConfig) -> bool:
    """On the GPUs that the run is meant for, not on this machine."""
    return train.parallel.precision != "fp32"


def _check_data(data: DataConfig, train: TrainConfig, report: Report) -> int:
    """Opens the sets and looks at every shard; returns the clips to train on, 0 if that is not known."""
    clips = 0
    sets = [("train", part.path, part.weight > 0) for part in data.train_sets]
    for name, location, drawn in [*sets, *([("val", data.val, False)] if data.val else [])]:
        try:
            store = open_store(data, location)
            index, table = store.open_index()
            store.check(index.shards)
        except (ShardError, OSError) as error:
            report.problem(f"data.{name}", str(error))
            continue
        hours, shards = index.duration_seconds / 3600, len(index.shards)
        size = f"{index.bytes / _GB:.1f} GB"
        report.line(
            f"data.{name}", f"{len(table)} clips, {hours:.1f} h, in {shards} shards of {size}; all there"
        )
        clips += len(table) if drawn else 0
    if clips and clips < train.parallel.global_batch_size:
        report.problem(
            "data.train", f"{clips} clips are fewer than one global batch; lower global_batch_size"
        )
    return clips


def _check_batch(train: TrainConfig, cluster: Cluster, report: Report) -> int:
    """The clips that a GPU computes at a time, or 0 where the global batch cannot be divided."""
    parallel = train.parallel
    try:
        micro_batch = parallel.micro_batch_size(cluster.world_size)
    except ValueError as error:
        report.problem("batch", str(error))
        return 0
    nodes = f"{cluster.nodes} nodes × {cluster.processes} processes"
    parts = f"{micro_batch} clips × {parallel.accumulation_steps} micro-batches × {nodes}"
    report.line("batch", f"{parallel.global_batch_size} = {parts}")
    return micro_batch


def _check_disk(run: PlannedRun, report: Report) -> None:
    """Each checkpoint: float32 weights (DeepSpeed's and safetensors), Adam's moments, with ZeRO its own weights."""
    of_trained = 12 if run.train.parallel.zero_stage else 8
    one, folder = 8 * run.parameters + of_trained * run.trainable, run.output_dir.absolute()
    needed = one * (run.train.keep_checkpoints + 1)
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{run.train.keep_checkpoints} + 1 checkpoints of {one / _GB:.2f} GB = {needed / _GB:.1f} GB"
    if needed > free:
        report.problem("disk", f"{text}, but only {free / _GB:.1f} GB are free in {folder}")
    else:
        report.line("disk", f"{text}; {free / _GB:.0f} GB free in {folder}")


def _check_memory(run: PlannedRun, micro_batch: int, cluster: Cluster, report: Report) -> None:
    activations, chosen = micro_batch * run.workload.activations, run.train.parallel.zero_stage
    for stage in (0, 1, 2):
        bf16 = _uses_bf16(run.train)
        overlap = run.train.parallel.overlap_comm
        state = state_bytes(run.parameters, run.trainable, cluster.world_size, stage, bf16, overlap)
        total = (state + activations) / _GB
        parts = f"{state / _GB:.1f} weights, gradients, Adam + {activations / _GB:.1f} activations"
        text = f"{total:.1f} GB for each process: {parts}"
        if stage == chosen and cluster.memory_gb and total > cluster.memory_gb:
            advice = "use more accumulation_steps, more GPUs, a higher zero_stage or activation_checkpointing"
            report.problem(f"ZeRO {stage}", f"{text}; more than a GPU's {cluster.memory_gb:.0f} GB: {advice}")
        else:
            report.line(f"ZeRO {stage}", text + (" (this run)" if stage == chosen else ""))


def _estimate_cost(run: PlannedRun, clips: int, cluster: Cluster, report: Report) -> None:
    steps = run.train.total_steps(clips)
    samples = steps * run.train.parallel.global_batch_size
    report.line("steps", f"{steps} steps, {samples / clips:.1f} epochs, {samples} clips")
    report.line(
        "FLOPs", f"{run.workload.flops / 1e9:.1f} GFLOP a clip, {run.workload.flops * samples:.3g} in all"
    )
    if not cluster.tflops:
        return
    gpu_hours = run.workload.flops * samples / (cluster.mfu * cluster.tflops * 1e12) / 3600
    hours, basis = gpu_hours / cluster.world_size, f"{cluster.mfu:.0%} of {cluster.tflops:.0f} TFLOP/s"
    report.line("time", f"{hours:.2f} h, {gpu_hours:.1f} GPU hours at {basis}, if data keeps up")


def _check_finetuning(config: LabelledConfig, cluster: Cluster) -> Report:
    try:
        run = planned_finetuning(config)
    except ValueError as error:  # what the model is made of is missing, or does not fit
        report = Report()
        report.problem("model", str(error))
        return report
    report = check(run, cluster)
    try:
        sets = open_training_sets(config)
        check_held_out(config, sets[0])
        labelled_task(config).check_labels(sets)
    except (ValueError, OSError) as error:
        if str(error) not in report.problems:  # a set that is missing has been told
            report.problem("labels", str(error))
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks what the command line says; see ``python -m launch.preflight``."""
    show_control_characters()
    given = command_line(arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python -m launch.preflight")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes")
    parser.add_argument("--processes", type=int, default=1, help="processes, or GPUs, on each node")
    parser.add_argument("--gpu_memory_gb", type=float, default=80.0, help="memory of a GPU; 0 for CPUs")
    parser.add_argument(
        "--gpu_tflops", type=float, default=312.0, help="peak of a GPU (312: A100 in bf16); 0 for CPUs"
    )
    parser.add_argument("--mfu", type=float, default=0.3, help="share of the peak that is reached")
    own = parser.parse_args(given[:cut])
    script, *rest = given[cut + 1 :] or [""]
    cluster = Cluster(own.nodes, own.processes, own.gpu_memory_gb, own.gpu_tflops, own.mfu)
    if script == "main_pretrain.py":
        run = planned_pretraining(parse_config(PretrainConfig, script, rest)[0])
        report = check(run, cluster)
    elif script == "main_finetune.py":
        report = _check_finetuning(parse_config(LabelledConfig, script, rest)[0], cluster)
    else:
        parser.error("after '--' comes main_pretrain.py or main_finetune.py with its arguments")
    print(report)
    return 1 if report.problems else 0
