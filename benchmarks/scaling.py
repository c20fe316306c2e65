"""Weak scaling: several processes, each with the work of one, against one; and a model of many GPUs.

    python benchmarks/scaling.py --processes 2 --model cav_mae_tiny --batch_size 8
    python benchmarks/scaling.py --processes 8 --model cav_mae_base --batch_size 64 --precision bf16
    python benchmarks/scaling.py --step_seconds 0.42 --model cav_mae_base --zero_stage 1 --gpus 8 64 512

Full steps by `step.py`, a process on one thread of a CPU, in three ways by turns, as often as ``--repeats`` says: one
process (*one*), so many at the same time that know nothing of each other (*apart*), so many that train together
(*together*). What *apart* loses against *one* is the machine's: memory, caches, clock. What *together* loses against
*apart* is the exchange of gradients. Then prints, for links of data sheets or of ``--link``, what larger numbers of
GPUs should reach by a model of the exchange (`scaling_model.py`). With ``--step_seconds``, measured elsewhere, nothing
is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch._subclasses.fake_tensor import FakeTensorMode

from atomic import write_atomically
from benchmarks.scaling_model import LINKS, Link, Step, model_lines
from engine.objectives.registry import list_objectives, objective_kind
from home_paths import command_line
from models import build_model, create_config, list_models, parameter_count

_STEP = Path(__file__).resolve().parent / "step.py"
#: By way, whether there are several processes, and whether they are one world.
WAYS = {"one": (False, False), "apart": (True, False), "together": (True, True)}


def main() -> None:
    """Measures, and prints the page."""
    options = _parse()
    page = [f"# Weak scaling, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", ""]
    compute, load = options.step_seconds, os.getloadavg()[0]
    if compute is None:
        seconds = measure_by_turns(lambda way: run_steps(options, way), options.repeats)
        compute = statistics.median(seconds["one"])
        page += [*_conditions(options, load), *measured_lines(seconds, options.processes), ""]
    step = Step(compute, count_parameters(options), options.zero_stage)
    page += [*model_lines(step, options.link or LINKS, options.gpus), ""]
    print("\n".join(page))
    if options.out:
        write_atomically(Path(options.out), "\n".join(page))


def measure_by_turns(run: Callable[[str], float], repeats: int) -> dict[str, list[float]]:
    """Seconds a step by way, measured in turns, so that a machine that changes its speed changes it for all."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(repeats):
        for way, seconds in found.items():
            seconds.append(run(way))
            print(f"{number + 1}. {way}: {seconds[-1]:.4f} s a step", file=sys.stderr, flush=True)
    return found


def run_steps(options: argparse.Namespace, way: str) -> float:
    """Seconds a step of processes that are started for it; the slowest one's.

    Raises:
        RuntimeError: A process failed; what it said last is told.
    """
    several, together = WAYS[way]
    count = options.processes if several else 1
    given = ("objective", "batch_size", "precision", "zero_stage", "steps")
    words = [f"--model={_model(options)}", *(f"--{name}={getattr(options, name)}" for name in given)]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"] if together else []
    )
    command = [sys.executable, *launcher, str(_STEP), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    started = [
        # LOCAL_RANK says which GPU, where there are any; torchrun gives its own.
        _started(command, environment | {"LOCAL_RANK": str(number)})
        for number in range(1 if together else count)
    ]
    try:
        return max(map(_seconds, started))
    finally:
        for process in started:
            process.kill()


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, encoding="utf-8")


def _seconds(process: subprocess.Popen[str]) -> float:
    said, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with status {process.returncode}:\n{errors[-3000:]}")
    return json.loads(said.splitlines()[-1])["seconds_per_step"]


def measured_lines(seconds: dict[str, list[float]], processes: int) -> Iterator[str]:
    """A Markdown table: each way's median and spread, its speed over that of ``one``, turn by turn."""
    yield "| way | processes | repeats | s/step, median | least … most | efficiency, median | least … most |"
    yield "|" + "---|" * 7
    for way, found in seconds.items():
        ratios = [one / ours for one, ours in zip(seconds["one"], found, strict=True)]
        cells = [
            way, processes if WAYS[way][0] else 1, len(found),
            f"{statistics.median(found):.4f}", f"{min(found):.4f} … {max(found):.4f}",
            f"{statistics.median(ratios):.1%}", f"{min(ratios):.1%} … {max(ratios):.1%}",
        ]  # fmt: skip
        yield f"| {' | '.join(map(str, cells))} |"


def _conditions(options: argparse.Namespace, load: float) -> Iterator[str]:
    yield f"{options.objective}, {_model(options)}, {options.batch_size} clips a process, {options.precision}, ZeRO"
    yield f"{options.zero_stage}, a thread a process; medians of {options.steps} steps, {options.repeats} by turns."
    yield f"{os.cpu_count()} cores, whose load was {load:.1f} just before. *one* is one process, *apart* so many"
    yield "that know nothing of each other, *together* so many that train together."
    yield ""


def count_parameters(options: argparse.Namespace) -> int:
    """Those that are trained; nothing is allocated."""
    with FakeTensorMode():
        return parameter_count(build_model(create_config(_model(options))))


def _model(options: argparse.Namespace) -> str:
    return options.model or objective_kind(options.objective).default_model


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="how many are compared with one")
    parser.add_argument("--repeats", type=int, default=5, help="of each way, by turns")
    parser.add_argument("--objective", default="cav_mae", choices=list_objectives())
    parser.add_argument("--model", choices=list_models(), help="another than the objective's default")
    parser.add_argument("--batch_size", type=int, default=8, help="clips a process")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--zero_stage", type=int, default=0, choices=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=10, help="timed steps of a repeat, after three that are not"
    )
    parser.add_argument("--step_seconds", type=float, help="of one GPU, measured elsewhere: the model alone")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512], help="of the model")
    parser.add_argument(
        "--link",
        type=Link.parse,
        action="append",
        help="of the model, NAME=GIGABYTES_PER_SECOND:MICROSECONDS",
    )
    parser.add_argument("--out", help="a Markdown file for what is printed")
    return parser.parse_args(command_line())


if __name__ == "__main__":
    main()
