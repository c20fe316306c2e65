"""Sections of `gpu_first.py`: is what is computed on a GPU right, and does nobody wait for it?"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_section import NotRunError, Setup, smallest_model, table
from benchmarks.step import build, make_batch, synchronize, take_step
from engine.evaluation.probes import ProbeConfig, cross_validated_probe
from engine.evaluation.retrieval import cross_modal_retrieval
from engine.objectives.registry import list_objectives
from engine.parallel.transfer import Transfer
from engine.records.attempts import NAME as ATTEMPTS
from engine.records.metrics import MetricBuffer
from engine.records.runlog import read_metrics

_ROOT = Path(__file__).resolve().parents[1]
#: Tokens that towers and joint blocks of a ViT-B see: kept visual, kept audio, both; and all of a clip.
LENGTHS = (49, 128, 177, 708)
HEAD_WIDTHS = (64, 32)
_BACKENDS = {
    "flash": [SDPBackend.FLASH_ATTENTION], "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION], "math": [SDPBackend.MATH],
}  # fmt: skip


def attention(setup: Setup) -> Iterator[str]:
    """Each backend of scaled_dot_product_attention, in bfloat16, against plain products in float32."""
    yield "Largest absolute difference from plain products in float32 of the same bfloat16 numbers, and the median"
    yield "time of forward and backward pass, of 16 clips and a width of 768 on a GPU (of one head on a CPU)."
    yield "`default` is what PyTorch chooses."
    yield ""
    rows = [
        [length, width, name, *_attended(setup, length, width, backend)]
        for length, width in product(LENGTHS, HEAD_WIDTHS)
        for name, backend in {"default": None, **_BACKENDS}.items()
    ]
    yield from table(["tokens", "head width", "backend", "output", "gradients", "ms"], rows)


def _attended(
    setup: Setup, length: int, width: int, backend: list[SDPBackend] | None
) -> tuple[float | str, float | str, float | str]:
    generator = torch.Generator().manual_seed(0)
    shape = (16, 768 // width, length, width) if setup.on_gpu else (1, 1, length, width)
    draws = [torch.randn(shape, generator=generator).bfloat16().to(setup.world.device) for _ in range(4)]

    def both(dtype: torch.dtype) -> list[Tensor]:
        query, key, value = (x.to(dtype).detach().requires_grad_() for x in draws[:3])
        output = F.scaled_dot_product_attention(query, key, value)
        return [output.detach(), *torch.autograd.grad(output, (query, key, value), draws[3].to(dtype))]

    with sdpa_kernel(SDPBackend.MATH):
        expected = both(torch.float32)
    try:
        with sdpa_kernel(backend) if backend else nullcontext():
            found = both(torch.bfloat16)
            seconds = _median_seconds(lambda: both(torch.bfloat16), setup)
    except RuntimeError as error:
        return "–", "–", f"no such kernel here: {str(error).splitlines()[0][:80]}"
    gaps = [(x.float() - y).abs().max().item() for x, y in zip(found, expected, strict=True)]
    return gaps[0], max(gaps[1:]), 1000 * seconds


def _median_seconds(function: Callable[[], object], setup: Setup) -> float:
    seconds = []
    for _ in range(20 if setup.on_gpu else 2):
        synchronize(setup.world)
        start = time.perf_counter()
        function()
        synchronize(setup.world)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def synchronisation(setup: Setup) -> Iterator[str]:
    """Steps during which PyTorch refuses whatever makes the host wait for the GPU."""
    setup.need_gpu()
    yield f'{setup.steps} steps under `torch.cuda.set_sync_debug_mode("error")`, which finds most of what'
    yield "waits, with the copy of a pinned batch and the noting of metrics, after a first step that makes Adam's"
    yield "state. At a log interval the host may wait: there it reads the metrics, in one copy, as is done here"
    yield "after the steps."
    yield ""
    tried = [(setup.objective, setup.model, stage) for stage in (0, 1, 2)]
    tried += [(kind, smallest_model(kind), 0) for kind in list_objectives() if kind != setup.objective]
    rows, problems = [], []
    for objective, model, stage in tried:
        try:
            said = _silent_steps(setup, setup.options(objective=objective, model=model, zero_stage=stage))
        except Exception as error:
            said = f"{_place(error)}: {error}".splitlines()[0]
            problems.append(f"{objective}, {model}, ZeRO {stage}")
        rows.append([objective, model, stage, said])
    yield from table(["objective", "model", "ZeRO", "found"], rows)
    if problems:
        raise RuntimeError(f"the host waits, or the step fails: {'; '.join(problems)}")


def _silent_steps(setup: Setup, options: Namespace) -> str:
    world = setup.world
    engine, objective = build(world, options, setup.folder)
    metrics = MetricBuffer(setup.steps, world.device)
    batches = [
        make_batch(options.batch_size, objective.needs(), world, n).to("cpu").pin_memory() for n in range(2)
    ]
    send = Transfer(world.device)
    take_step(engine, options.zero_stage, send(batches[0]))
    synchronize(world)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(setup.steps):
            loss = take_step(engine, options.zero_stage, send(batches[step % 2]))
            metrics.append(step, {"loss": loss})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    losses = [values["loss"] for values in metrics.drain(world)[0].values()]
    if not all(map(math.isfinite, losses)):
        raise ValueError(f"losses are not finite: {losses}")
    return f"nobody waits; last loss {losses[-1]:.4f}"


def _place(error: Exception) -> str:
    """Where in Earsight an error came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_ROOT)]
    inside = [
        f for f in frames if "site-packages" not in f.filename and "benchmarks" not in f.filename
    ] or frames
    return f"{Path(inside[-1].filename).relative_to(_ROOT)}:{inside[-1].lineno}" if inside else "?"


def precision(setup: Setup) -> Iterator[str]:
    """The losses of the same steps in float32 and in bfloat16."""
    steps = 4 * setup.steps
    losses = {name: _losses(setup, name, steps) for name in ("fp32", "bf16")}
    yield "From the same weights, four batches round and round; bfloat16 by autocast, weights float32."
    yield ""
    gaps = [abs(b / a - 1) for a, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    shown = sorted({0, 1, steps // 4, steps // 2, steps - 1})
    rows = [[n + 1, *(f"{losses[name][n]:.5f}" for name in losses), f"{gaps[n]:.3%}"] for n in shown]
    yield from table(["step", "fp32", "bf16", "difference"], rows)
    yield f"Largest difference in {steps} steps: {max(gaps):.2%}."
    yield ""
    if not all(map(math.isfinite, gaps)):
        raise ValueError(f"losses are not finite: {losses}")


def _losses(setup: Setup, precision: str, steps: int) -> list[float]:
    options = setup.options(precision=precision)
    engine, objective = build(setup.world, options, setup.folder)
    batches = [make_batch(options.batch_size, objective.needs(), setup.world, n) for n in range(4)]
    return torch.stack([take_step(engine, 0, batches[n % 4]) for n in range(steps)]).tolist()


def held_out(setup: Setup) -> Iterator[str]:
    """What is measured on held-out clips, computed on the device and on the CPU."""
    clips, classes = (10_000, 500) if setup.on_gpu else (200, 5)
    generator = torch.Generator().manual_seed(0)
    labels = F.one_hot(torch.randint(classes, (clips,), generator=generator), classes).float()
    audio = torch.randn(clips, 768, generator=generator)
    visual = audio + 5 * torch.randn(clips, 768, generator=generator)
    measured, seconds = [], []
    for place in (torch.device("cpu"), setup.world.device):
        sound, picture, classes_of = audio.to(place), visual.to(place), labels.to(place)
        start = time.perf_counter()
        values = cross_modal_retrieval(sound, picture)
        values |= cross_validated_probe(sound[:2000], classes_of[:2000], ProbeConfig())
        seconds.append(time.perf_counter() - start)  # the device is done: numbers were read from it
        measured.append(values)
    yield f"{clips} random clips of {classes} classes; the first time of a device has its start."
    yield ""
    rows = [[name, value, measured[1][name]] for name, value in measured[0].items()]
    yield from table(["", "CPU", "device"], [["seconds", *seconds], *rows])
    # A hundredth: rounding decides about single clips, and about where the probe's search ends.
    if any(abs(value - other) > 1e-2 * max(1.0, abs(value)) for _, value, other in rows):
        raise RuntimeError("the device measures something else")


def resuming(setup: Setup) -> Iterator[str]:
    """A run stopped on one GPU goes on on two, and must have the losses of one that was left alone."""
    setup.need_gpu()
    if torch.cuda.device_count() < 2:
        raise NotRunError("one GPU: not run")
    yield "Stopped on one GPU halfway, resumed on two; losses against those of a run that was left alone on one GPU"
    yield "(fp32, so that what differs is rounding)."
    yield ""
    words = ["--out", str(setup.folder / "resuming"), "--objective", setup.objective]
    resume_runs(words, processes=1)
    resume_runs(words, processes=2)
    rows = list(resume_rows(setup.folder / "resuming"))
    yield from table(["ZeRO", "steps", "resumed after", "on", "largest difference"], rows)


def resume_runs(words: list[str], processes: int) -> None:
    """`gpu_resume.py` under torchrun.

    Raises:
        RuntimeError: It failed; what it said last is told.
    """
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    program = str(_ROOT / "benchmarks" / "gpu_resume.py")
    done = subprocess.run(
        [*launcher, program, *words], capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{program} ended with status {done.returncode} on {processes}:\n{done.stderr[-3000:]}"
        )


def resume_rows(folder: Path) -> Iterator[list[Any]]:
    """A row for each ZeRO stage of what `gpu_resume.py` left."""
    for whole in sorted(folder.glob("whole_*")):
        stage = whole.name.removeprefix("whole_")
        ours, theirs = (_losses_by_step(folder / f"{name}_{stage}") for name in ("whole", "resumed"))
        if ours.keys() != theirs.keys():
            raise ValueError(f"ZeRO {stage}: steps {sorted(theirs)} in place of {sorted(ours)}")
        gap = max(abs(theirs[step] / loss - 1) for step, loss in ours.items())
        last = json.loads(
            (folder / f"resumed_{stage}" / ATTEMPTS).read_text(encoding="utf-8").splitlines()[-1]
        )
        yield [stage, len(ours), last["step"], last["world_size"], f"{gap:.2e}"]


def _losses_by_step(run: Path) -> dict[int, float]:
    return {
        int(record["step"]): record["train/loss"] for record in read_metrics(run) if "train/loss" in record
    }
