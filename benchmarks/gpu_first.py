"""The first hour on a GPU as one script: what is right, what waits, how fast, in one Markdown file.

    python benchmarks/gpu_first.py
    python benchmarks/gpu_first.py --model cav_mae_base --batch_sizes 64 128 --out gpu.md
    python benchmarks/gpu_first.py --device cpu --model cav_mae_tiny --batch_sizes 2 --steps 2 --out cpu.md

The sections are independent: one that fails writes its error into the file, the rest goes on, and the exit status is 1.
The file is written anew after every section. With ``--device cpu`` sections that need a GPU say so. One process on one
GPU, but for the resuming of a run on two, where there are two. It is to fit ten minutes of an H200 with ViT-B; that is
an estimate, as nothing here has run on a GPU yet.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.cuda import nccl

from atomic import write_atomically
from benchmarks.gpu_checks import attention, held_out, precision, resuming, synchronisation
from benchmarks.gpu_section import NotRunError, Setup
from benchmarks.gpu_speed import batch_sizes, beside, profile
from engine.objectives.registry import list_objectives, objective_kind
from engine.parallel.world import distributed, import_deepspeed
from engine.records.attempts import device_name
from home_paths import command_line
from models import list_models

#: From a setup to lines of Markdown; lines given before an error are kept.
Section = Callable[[Setup], Iterator[str]]


def facts(setup: Setup) -> Iterator[str]:
    """What was measured on, and with what."""
    yield f"- {device_name(setup.world.device)}, {torch.get_num_threads()} threads, Python {platform.python_version()}"
    if setup.on_gpu:
        properties = torch.cuda.get_device_properties(setup.world.device)
        yield f"- {torch.cuda.device_count()} GPUs, {properties.total_memory / 1e9:.0f} GB, driver {_driver()}"
        yield f"- CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl.version()}"
        yield f"- bf16 {torch.cuda.is_bf16_supported()}, tf32 in products {torch.backends.cuda.matmul.allow_tf32}"
    yield f"- PyTorch {torch.__version__}, DeepSpeed {import_deepspeed().__version__}"
    sizes = ", ".join(map(str, setup.batch_sizes))
    yield f"- {setup.objective}, {setup.model}, batches of {sizes}, {setup.steps} steps"
    yield ""


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, encoding="utf-8", timeout=60, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]


SECTIONS: dict[str, Section] = {
    "Machine": facts,
    "Attention": attention,
    "Steps for which nobody waits": synchronisation,
    "bf16 against fp32": precision,
    "Held-out clips on the device": held_out,
    "Resuming on two GPUs": resuming,
    "Profile": profile,
    "Beside the step": beside,
    "Speed and memory": batch_sizes,
}


def main() -> int:
    """Runs all sections; 0 where none failed."""
    options = _parse()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print(
            "there is no GPU that PyTorch can use; give --device cpu to try the script itself",
            file=sys.stderr,
        )
        return 2
    results = Path(__file__).resolve().parent / "results"
    out = Path(options.out or results / f"{datetime.now(UTC):%Y-%m-%d}_gpu.md")
    model = options.model or objective_kind(options.objective).default_model
    with distributed() as world, tempfile.TemporaryDirectory() as folder:
        sizes = tuple(options.batch_sizes)
        setup = Setup(world, options.objective, model, sizes, options.steps, Path(folder))
        failed = run_sections(SECTIONS, setup, out)
    print(f"{out}: {len(failed)} of {len(SECTIONS)} sections failed")
    return 1 if failed else 0


def run_sections(sections: Mapping[str, Section], setup: Setup, out: Path) -> list[str]:
    """Writes the page, section by section.

    Returns:
        The titles of those that failed.
    """
    began, failed = time.monotonic(), []
    page = [f"# First measurements, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", ""]
    for title, section in sections.items():
        page += [f"## {title}", ""]
        started = time.monotonic()
        try:
            for line in section(setup):
                page.append(line)
        except NotRunError as error:
            page += [f"Not run: {error}.", ""]
        except Exception:
            failed.append(title)
            page += ["**Failed.**", "", "```", *traceback.format_exc().splitlines()[-25:], "```", ""]
        gc.collect()
        if setup.on_gpu:
            torch.cuda.empty_cache()
        print(f"{title}: {time.monotonic() - started:.0f} s{' FAILED' * (title in failed)}", flush=True)
        write_atomically(out, "\n".join(page))
    failures = f"failed: {', '.join(failed)}" if failed else "none failed"
    page.append(f"{len(sections)} sections in {time.monotonic() - began:.0f} s; {failures}.")
    write_atomically(out, "\n".join([*page, ""]))
    return failed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="the Markdown file; benchmarks/results/DATE_gpu.md by default")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--objective", default="cav_mae", choices=list_objectives())
    parser.add_argument("--model", choices=list_models(), help="another than the objective's default")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[32, 64, 128, 256], help="clips a micro-batch"
    )
    parser.add_argument("--steps", type=int, default=5, help="measured at a time")
    return parser.parse_args(command_line())


if __name__ == "__main__":
    sys.exit(main())
