"""Sections of `gpu_first.py`: how fast is a step, on what is its time spent, how much memory does it take?"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks import checkpoints
from benchmarks.gpu_section import Setup, table
from benchmarks.step import build, make_batch, measure, synchronize, take_step
from datasets.batch import AVBatch
from engine.parallel.transfer import Transfer
from engine.training.peak_flops import measured_peak_flops

_SHOWN = 15


def profile(setup: Setup) -> Iterator[str]:
    """Which kernels take the time of a step, and how many there are."""
    events = _profiled(setup)
    copies = [event for event in events if event.key.startswith(("Memcpy", "Memset"))]
    kernels = [event for event in events if event not in copies]
    launches, total = (
        sum(x) / setup.steps for x in ([e.count for e in kernels], [_time(e) for e in kernels])
    )
    what = "kernels" if setup.on_gpu else "operations of the CPU"
    yield f"Of {setup.steps} steps of {setup.batch_sizes[0]} clips, {setup.model}, bf16, ZeRO 0: {launches:.0f} {what}"
    yield f"a step, {total / 1000:.2f} ms of time in them."
    for event in copies:
        yield f"{event.key}: {event.count / setup.steps:.1f} a step, {_time(event) / setup.steps / 1000:.3f} ms."
    yield ""
    rows = [
        [event.key[:100], f"{event.count / setup.steps:.1f}", _time(event) / setup.steps / 1000,
         f"{_time(event) / setup.steps / max(total, 1e-9):.1%}"]
        for event in sorted(kernels, key=_time, reverse=True)[:_SHOWN]
    ]  # fmt: skip
    yield from table([what, "a step", "ms a step", "share"], rows)


def _profiled(setup: Setup) -> list[Any]:
    """The profiler's averages of what ran on the device."""
    engine, objective = build(setup.world, setup.options(), setup.folder)
    batch = make_batch(setup.batch_sizes[0], objective.needs(), setup.world, 0)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_gpu else [])]
    for _ in range(2):
        take_step(engine, 0, batch)
    synchronize(setup.world)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(setup.steps):
            take_step(engine, 0, batch)
        synchronize(setup.world)
    device = DeviceType.CUDA if setup.on_gpu else DeviceType.CPU
    events = [event for event in profiler.key_averages() if event.device_type == device and _time(event) > 0]
    return [event for event in events if not event.is_user_annotation]  # these span what is counted itself


def _time(event: Any) -> float:
    """Microseconds spent in it alone."""
    return event.self_device_time_total if event.device_type == DeviceType.CUDA else event.self_cpu_time_total


def beside(setup: Setup) -> Iterator[str]:
    """What sending batches and writing checkpoints beside the steps saves, by turns."""
    engine, objective = build(setup.world, setup.options(), setup.folder)
    made = (make_batch(setup.batch_sizes[0], objective.needs(), setup.world, n).to("cpu") for n in range(2))
    batches = [batch.pin_memory() if setup.on_gpu else batch for batch in made]
    ways: dict[str, Callable[[AVBatch], AVBatch]] = {
        "on the steps' stream": lambda batch: batch.to(setup.world.device),
        "on its own": Transfer(setup.world.device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(4):  # of which the first is not counted
        for name, send in ways.items():
            synchronize(setup.world)
            start = time.perf_counter()
            for number in range(setup.steps):
                take_step(engine, 0, send(batches[number % 2]))
            synchronize(setup.world)
            seconds[name] += [(time.perf_counter() - start) / setup.steps] * (turn > 0)
    yield from table(
        ["a batch is sent", "s/step, median", "least", "most"],
        ([name, statistics.median(found), min(found), max(found)] for name, found in seconds.items()),
    )
    del engine, objective
    _clear(setup)
    options = setup.options(turns=2, steps=4 * setup.steps)
    yield from ["```", *checkpoints.measure(setup.world, options, setup.folder).splitlines(), "```", ""]


def batch_sizes(setup: Setup) -> Iterator[str]:
    """Speed and memory at several batch sizes, in bfloat16 at ZeRO 0."""
    peak = measured_peak_flops(setup.world.device, True)
    yield f"Utilisation is against a large matrix product in bf16, {peak / 1e12:.3g} TFLOP/s here. Memory is the peak"
    yield "of what PyTorch allocated; `launch.preflight`'s estimate leaves out the backward pass's own buffers."
    if not setup.on_gpu:
        yield "On a CPU the peak is that of the whole process."
    yield ""
    rows = [[size, *_measured(setup, size)] for size in setup.batch_sizes]
    yield from table(
        ["clips", "s/step", "samples/s", "utilisation", "peak GB", "estimated GB", "peak / estimate"], rows
    )


def _clear(setup: Setup) -> None:
    """Gives back the memory of engines that are gone."""
    gc.collect()
    if setup.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _measured(setup: Setup, size: int) -> list[Any]:
    _clear(setup)
    try:
        found = measure(setup.world, setup.options(batch_size=size), setup.folder)
    except torch.OutOfMemoryError:
        return ["out of memory", *["–"] * 5]
    keys = ("seconds_per_step", "samples_per_second", "mfu", "peak_memory_gb", "estimated_memory_gb")
    values: list[Any] = [found[key] for key in keys]
    return [*values, f"{values[3] / max(values[4], 0.01):.2f}"]
