"""Times a full training step (front end, forward, losses, backward, clipping, Adam): samples/s and utilisation.

    python benchmarks/step.py --objective tg_dp --model cav_mae_sync_tiny
    python benchmarks/step.py --model cav_mae_base --batch_size 8 --precision bf16
    torchrun --nproc_per_node 8 benchmarks/step.py --batch_size 64 --precision bf16 --compile
    python benchmarks/step.py --model cav_mae_base --precision bf16 --against ../earsight-before

Utilisation is against a large matrix product of the same precision timed between the steps of the same run, so that it
holds on a machine whose speed drifts. FLOPs are the model's, as the literature counts them (`models.workload`): linear
layers, three times forward, removed tokens not counted in the encoder, attention products not counted. An objective
with a teacher of its own kind of model gets one of random weights. Prints a table and one JSON line.

With ``--against`` another checkout's `step.py` is run with the same options, by turns with this one, and both medians
and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engine as before_torch  # noqa: F401  # says how threads wait, which is read when torch comes

# isort: split

import torch
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds
from engine.objectives.base import PretrainingObjective
from engine.objectives.registry import build_objective, list_objectives, objective_kind
from engine.parallel.deepspeed_engine import (
    ParallelConfig,
    build_engine,
    inner_optimizer,
    partition_gradients,
)
from engine.parallel.world import World, distributed
from engine.preflight.estimates import state_bytes
from engine.training.optimizer import OptimizerConfig, build_optimizer, clip_gradients, skip_unless_finite
from engine.training.peak_flops import measure_peak_flops
from home_paths import command_line
from models import FbankConfig, ModelConfig, build_model, create_config, list_models, parameter_count
from models.layers.blocks import compile_blocks
from models.weights.description import Description, save_described

_STORED = 16  # frames a clip, enough for every objective


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objective", default="cav_mae", choices=list_objectives())
    parser.add_argument("--model", choices=list_models(), help="another than the objective's default")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a process and micro-batch")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--zero_stage", type=int, default=0, choices=[0, 1, 2])
    parser.add_argument("--overlap_comm", action="store_true", help="of ZeRO 1 and 2")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute activations in the backward pass"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after three that are not")
    parser.add_argument("--against", type=Path, help="another checkout, such as a git worktree; no torchrun")
    parser.add_argument("--turns", type=int, default=3, help="of each side, with --against")
    options = parser.parse_args(command_line())
    if options.against is not None:
        given = vars(options)
        other, turns = given.pop("against").resolve(), given.pop("turns")
        print(compare([Path(__file__).resolve().parents[1], other], given, turns))
        return
    with distributed() as world, tempfile.TemporaryDirectory() as folder:
        result = measure(world, options, Path(folder))
    if world.is_main:
        print("\n".join(f"{name:32}{value}" for name, value in result.items()))
        print(json.dumps(result))


def compare(checkouts: Sequence[Path], options: dict[str, Any], turns: int) -> str:
    """A table of two checkouts' steps, by turns in processes of their own: medians, and the ratio of their times."""
    words = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value
    ]
    found: list[list[dict[str, Any]]] = [[], []]
    for _ in range(turns):
        for results, checkout in zip(found, checkouts, strict=True):
            command = [sys.executable, str(checkout / "benchmarks" / "step.py"), *words]
            output = subprocess.run(
                command, cwd=checkout, check=True, stdout=subprocess.PIPE, encoding="utf-8"
            ).stdout
            results.append(json.loads(output.splitlines()[-1]))
    lines = [f"{'median':24}{'this':>10}{'other':>10}"]
    for name in ("seconds_per_step", "samples_per_second", "mfu", "peak_memory_gb"):
        this, other = (statistics.median(result[name] for result in results) for results in found)
        lines.append(f"{name:24}{this:>10g}{other:>10g}")
    this, other = ([result["seconds_per_step"] for result in results] for results in found)
    ratio = statistics.median(other) / statistics.median(this)
    lines.append(f"this is {ratio:.2f} times as fast; seconds a step by turns: {this} and {other}")
    return "\n".join(lines)


def make_objective(options: argparse.Namespace, folder: Path) -> PretrainingObjective[Any]:
    """The objective of the command line with the same random weights at each call; a teacher goes into ``folder``."""
    kind = objective_kind(options.objective)
    checkpointing = {"activation_checkpointing": True} if options.checkpointing else {}
    config = create_config(options.model or kind.default_model, **checkpointing)
    torch.manual_seed(0)
    fbank = FbankConfig(target_length=config.audio_length, num_mel_bins=config.num_mel_bins)
    has_teacher = "teacher" in {field.name for field in fields(kind.config)}
    given = {"teacher": random_teacher(folder, config, fbank)} if has_teacher else {}
    return build_objective(build_model(config), fbank, kind.config(**given))


def build(world: World, options: argparse.Namespace, folder: Path) -> tuple[Any, PretrainingObjective[Any]]:
    """The DeepSpeed engine and the objective in it; arguments as of `make_objective`."""
    objective = make_objective(options, folder).to(world.device)
    if options.compile:
        compile_blocks(objective.model)
    parallel = ParallelConfig(
        options.batch_size * world.size,
        zero_stage=options.zero_stage,
        overlap_comm=options.overlap_comm,
        precision=options.precision,
    )
    optimizer = build_optimizer(OptimizerConfig(clip_grad=1.0), objective.model, objective.no_weight_decay())
    return build_engine(objective, optimizer, parallel, world), objective


def measure(world: World, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """What the table says; arguments as of `build`."""
    engine, objective = build(world, options, folder)
    bf16 = options.precision == "bf16"
    flops = objective.workload(bf16).flops
    batches = [make_batch(options.batch_size, objective.needs(), world, number) for number in range(4)]
    seconds, peaks = [], []
    for number in range(options.steps + 3):
        peaks.append(measure_peak_flops(world.device, bf16, repeats=3))
        seconds.append(timed_step(engine, options.zero_stage, batches[number % 4], world))
    step, peak = statistics.median(seconds[3:]), statistics.median(peaks[3:])
    ratios = [options.batch_size * flops / s / p for s, p in zip(seconds, peaks, strict=True)]
    return {
        "objective": options.objective,
        "model": options.model or objective_kind(options.objective).default_model,
        "batch": options.batch_size,
        "processes": world.size,
        "precision": options.precision,
        "zero_stage": options.zero_stage,
        "overlap_comm": options.overlap_comm,
        "compile": options.compile,
        "activation_checkpointing": options.checkpointing,
        "seconds_per_step": round(step, 4),
        "samples_per_second": round(options.batch_size * world.size / step, 2),
        "gflop_per_sample": round(flops / 1e9, 1),
        "matmul_tflops": round(peak / 1e12, 3),
        "mfu": round(statistics.median(ratios[3:]), 3),
        "peak_memory_gb": round(peak_memory(world) / 1e9, 2),
        "estimated_memory_gb": round(estimated_memory(objective, world, options) / 1e9, 2),
        "device": torch.cuda.get_device_name()
        if world.device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def timed_step(engine: Any, zero_stage: int, batch: AVBatch, world: World) -> float:
    synchronize(world)
    start = time.perf_counter()
    take_step(engine, zero_stage, batch)
    synchronize(world)
    return time.perf_counter() - start


def take_step(engine: Any, zero_stage: int, batch: AVBatch) -> Tensor:
    """One step as the trainer takes it; returns the loss, () float32, for which nobody has waited."""
    loss = engine(batch)["loss"]
    engine.backward(loss)
    norm = clip_gradients(partition_gradients(engine, zero_stage), 1.0, partitioned=zero_stage > 0)
    skip_unless_finite(inner_optimizer(engine), norm)
    engine.step()
    return loss.detach()


def random_teacher(folder: Path, config: ModelConfig, fbank: FbankConfig) -> str:
    """A model of random weights in a file, as another run would have left it."""
    path = folder / "teacher.safetensors"
    save_described(path, build_model(config).state_dict(), Description(config, fbank))
    return str(path)


def make_batch(size: int, needs: ClipNeeds, world: World, number: int) -> AVBatch:
    """Noise and the noisy frames that are chosen of sixteen; other clips on every rank and in every batch."""
    generator = torch.Generator().manual_seed(number * world.size + world.rank)
    chosen = needs.train_frames(_STORED, 0) if needs.train_frames else []
    pictures = (size, len(chosen), 3, needs.image_size, needs.image_size)
    sounds = (size, needs.num_samples)
    batch = AVBatch(
        ids=[str(row) for row in range(size)],
        rows=torch.arange(size),
        seeds=torch.randint(2**62, (size,), generator=generator),
        waveform=torch.randint(-9000, 9000, sounds, generator=generator, dtype=torch.int16),
        num_samples=torch.full((size,), needs.num_samples),
        frames=torch.randint(0, 256, pictures, generator=generator, dtype=torch.uint8),
        frame_index=torch.tensor([chosen] * size),
        num_stored=torch.full((size,), _STORED),
    )
    return batch.to(world.device)


def synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def peak_memory(world: World) -> int:
    """Bytes: of the device on a GPU, of the process on a CPU."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def estimated_memory(
    objective: PretrainingObjective[Any], world: World, options: argparse.Namespace
) -> float:
    """Bytes of a step as `launch.preflight` estimates them."""
    parameters = parameter_count(objective, trainable_only=False), parameter_count(objective.model)
    bf16 = options.precision == "bf16"
    state = state_bytes(*parameters, world.size, options.zero_stage, bf16, options.overlap_comm)
    return state + options.batch_size * objective.workload(bf16).activations


if __name__ == "__main__":
    main()
