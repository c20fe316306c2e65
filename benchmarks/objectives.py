"""Compares every registered objective on the generated world at equal processor minutes.

    python benchmarks/objectives.py --out runs/objectives --write docs/objectives.md
    python benchmarks/objectives.py --out runs/objectives --kinds cav_mae equiav --minutes 0.5 --seeds 0

An objective comes with ``configs/pretrain_KIND_tiny.yaml``. Of each, two short runs say what a step costs in processor
time (user and system, loader included), which is what other work on the machine changes least; so many steps as the
minutes pay for are then trained with every seed. Measured on test clips: retrieval and linear probes at the end of
pretraining, and fine-tuning by sound, by picture and by both. A second stage has its minutes beside its teacher's.

What is finished is not done again, run by run; the table is written after every objective.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from atomic import new_file, write_atomically
from benchmarks.objectives_page import render, write_page
from engine.demo.run import make_shards
from engine.objectives.registry import list_objectives
from engine.records.runlog import read_metrics
from home_paths import command_line

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: Steps of the two short runs; the first steps of a process are slower.
_SHORT = (4, 16)


@dataclass(frozen=True)
class Recipe:
    """An objective's recipe for the generated world.

    Attributes:
        kind: The objective.
        path: The YAML file.
        values: What it says.
    """

    kind: str
    path: Path
    values: dict[str, Any]

    @property
    def batch(self) -> int:
        """Clips to a step."""
        return self.values["train"]["parallel"]["global_batch_size"]


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: Of processors, user and system, with all of its children.
        peak_bytes: Most memory of one process.
    """

    seconds: float
    peak_bytes: int


def find_recipes(kinds: Sequence[str]) -> list[Recipe]:
    """The recipes of objectives; one whose teacher is another's run comes after that.

    Raises:
        FileNotFoundError: An objective has none.
    """
    found = []
    for kind in kinds:
        path = _CONFIGS / f"pretrain_{kind}_tiny.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: the objective {kind} has no recipe for the generated world; write one, or leave it "
                f"out with --kinds"
            )
        found.append(Recipe(kind, path, yaml.safe_load(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda recipe: teacher_of(recipe) is not None)


def teacher_of(recipe: Recipe) -> str | None:
    """The run that a recipe's teacher is, as its ``output_dir`` in another recipe; None without a teacher."""
    return recipe.values.get("objective", {}).get("teacher")


class Comparison:
    """All runs of a comparison and what came of them.

    Args:
        recipes: The objectives.
        data: Folder with ``shards/{train,val,test}`` of the generated world.
        out: Where runs and results go.
        minutes: Of a processor, for each pretraining run.
    """

    def __init__(self, recipes: list[Recipe], data: Path, out: Path, minutes: float) -> None:
        self._recipes, self._shards, self._out, self._minutes = recipes, data / "shards", out, minutes
        fbank = json.loads((self._shards / "train" / "index.json").read_text(encoding="utf-8"))["fbank"]
        self._common = [
            f"data.train={self._shards}/train",
            f"fbank.mean={fbank['mean']:.4f}", f"fbank.std={fbank['std']:.4f}",
        ]  # fmt: skip

    def step_cost(self, recipe: Recipe) -> float:
        """Processor seconds of a step, measured once."""
        path = self._out / recipe.kind / "cost.json"
        if not path.is_file():
            runs = [self._pretrain(recipe, 0, steps, f"short_{steps}", val=None) for steps in _SHORT]
            seconds = (runs[1].seconds - runs[0].seconds) / (_SHORT[1] - _SHORT[0])
            write_atomically(path, json.dumps({"seconds_per_step": seconds}) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))["seconds_per_step"]

    def result(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """What came of an objective with one seed: trained and measured, unless that is done."""
        path = self._out / recipe.kind / f"seed_{seed}" / "result.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        seconds = self.step_cost(recipe)
        steps = max(1, round(60 * self._minutes / seconds))
        cost = self._pretrain(recipe, seed, steps, f"seed_{seed}/pretrain", val="test")
        measured = read_metrics(path.parent / "pretrain")[-1]
        finetuned = self._finetune(path.parent, seed)
        values = {
            "kind": recipe.kind, "seed": seed, "minutes": self._minutes, "steps": steps,
            "clips_per_second": recipe.batch / seconds, "peak_bytes": cost.peak_bytes,
            "measured": {k.removeprefix("val/"): v for k, v in measured.items() if k.startswith("val/")},
            "finetuned": {name: accuracy[0] for name, accuracy in finetuned["accuracy"].items()},
        }  # fmt: skip
        write_atomically(path, json.dumps(values, indent=1) + "\n")
        return values

    def _pretrain(self, recipe: Recipe, seed: int, steps: int, name: str, val: str | None) -> Cost:
        run = self._out / recipe.kind / name
        planned = recipe.values["train"]["epochs"]
        warmup = (
            recipe.values.get("schedule", {}).get("warmup_epochs", 0) / planned
        )  # the same share of the run
        clips = json.loads((self._shards / "train" / "index.json").read_text(encoding="utf-8"))["samples"]
        words = [
            "--config", str(recipe.path), *self._common, f"output_dir={run}", f"seed={seed}",
            f"data.val={self._shards / val if val else 'null'}", f"train.steps={steps}",
            f"schedule.warmup_epochs={warmup * steps * recipe.batch / clips}",
            f"train.eval_interval={steps}", f"train.checkpoint_interval={steps}",
        ]  # fmt: skip
        if teacher_of(recipe):
            words.append(f"objective.teacher={self._teacher(recipe)}/seed_{seed}/pretrain")
        return run_python(
            ["main_pretrain.py", *words], self._out / recipe.kind / f"{name.replace('/', '_')}.log"
        )

    def _teacher(self, recipe: Recipe) -> Path:
        named = teacher_of(recipe)
        for other in self._recipes:
            if other.values["output_dir"] == named:
                return self._out / other.kind
        raise ValueError(
            f"{recipe.path}: objective.teacher {named} is the run of none of the objectives compared"
        )

    def _finetune(self, folder: Path, seed: int) -> dict[str, Any]:
        model = yaml.safe_load((folder / "pretrain" / "config.yaml").read_text(encoding="utf-8"))["model"]
        overrides = [f"model.{name}={value}" for name, value in flat(model) if value is not None]
        words = ["--shards", str(self._shards), "--out", str(folder / "finetune"), "--seeds", str(seed)]
        words += ["--init", str(folder / "pretrain"), "--overrides", *overrides]
        run_python(["-m", "engine.demo.finetuning", *words], folder / "finetune.log")
        return json.loads((folder / "finetune" / "results.json").read_text(encoding="utf-8"))


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings by dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found


def run_python(words: list[str], log: Path) -> Cost:
    """Runs a program of the project on one thread and waits for it.

    Raises:
        RuntimeError: It failed; the end of its log is told.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with new_file(log) as file:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
        raise RuntimeError(f"{words[0]} ended with status {process.returncode}; {log} ends:\n{last}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="where the world's shards are, or go"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/objectives"), help="where runs and results go")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="processor minutes of each pretraining run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=None, choices=list_objectives(), help="all by default")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs side by side")
    parser.add_argument("--write", type=Path, default=None, help="a page whose table and plot are renewed")
    options = parser.parse_args(command_line())
    make_shards(options.data, (1200, 250, 500))
    recipes = find_recipes(options.kinds or list_objectives())
    comparison = Comparison(recipes, options.data, options.out, options.minutes)
    results: list[dict[str, Any]] = []
    for recipe in recipes:
        comparison.step_cost(recipe)  # alone, before runs share the machine
        with ThreadPoolExecutor(options.jobs) as pool:
            results += pool.map(lambda seed, recipe=recipe: comparison.result(recipe, seed), options.seeds)
        print(render(results), flush=True)
        if options.write:
            write_page(options.write, results)


if __name__ == "__main__":
    main()
