"""Runs of the generated world compared at equal processor minutes: what `objectives.py` and `mavil.py` share.

A short run says what a step of a candidate costs in processor time (user and system, loader included), which is what
other work on the machine changes least; so many steps as its minutes pay for are then trained with every seed. What is
finished is not done again, run by run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import yaml

from atomic import new_file, write_atomically
from benchmarks.comparison_page import Column, render, write_page
from engine.demo.run import make_shards
from engine.records.runlog import read_metrics

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: Steps between which the short run is measured; the first of a process are slower.
_MEASURED = (8, 40)


@dataclass(frozen=True)
class Candidate:
    """A recipe for the generated world, and how long it is trained.

    Attributes:
        name: Its folder, and its row in the table.
        recipe: The YAML file.
        values: What that says.
        words: Settings beside it, as on the command line.
        teacher: The candidate whose run, of the same seed, is its teacher.
        clips_of: A candidate that it sees as many clips as, in place of so many as its minutes pay for.
        times: How many times as many clips as ``clips_of``.
    """

    name: str
    recipe: Path
    values: dict[str, Any]
    words: tuple[str, ...] = ()
    teacher: Candidate | None = None
    clips_of: Candidate | None = None
    times: float = 1.0

    @property
    def batch(self) -> int:
        """Clips to a step."""
        return self.values["train"]["parallel"]["global_batch_size"]


def _read_candidate(kind: str) -> Candidate:
    """An objective with its recipe for the generated world, ``configs/pretrain_KIND_tiny.yaml``.

    Raises:
        FileNotFoundError: It has none.
    """
    path = _CONFIGS / f"pretrain_{kind}_tiny.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the objective {kind} has no recipe for the generated world; write one, or leave it out "
            f"with --kinds"
        )
    return Candidate(kind, path, yaml.safe_load(path.read_text(encoding="utf-8")))


def find_candidates(kinds: Sequence[str]) -> list[Candidate]:
    """Objectives with their recipes; one whose teacher is another's run comes after that.

    Raises:
        FileNotFoundError: An objective has no recipe.
        ValueError: A teacher is the run of none of them.
    """
    found = [_read_candidate(kind) for kind in kinds]
    runs = {candidate.values["output_dir"]: candidate for candidate in found}
    taught = []
    for candidate in found:
        named = candidate.values.get("objective", {}).get("teacher")
        if named is not None and named not in runs:
            raise ValueError(
                f"{candidate.recipe}: objective.teacher {named} is the run of none of the objectives compared"
            )
        taught.append(replace(candidate, teacher=runs[named]) if named is not None else candidate)
    return sorted(taught, key=lambda candidate: candidate.teacher is not None)


class Comparison:
    """All runs of a comparison and what came of them.

    Args:
        data: Folder with ``shards/{train,val,test}`` of the generated world.
        out: Where runs and results go, in a folder for each candidate.
        minutes: Of a processor, for each pretraining run.
        seeds: Each candidate is trained with each of them.
        finetune: Whether fine-tuning is measured too.
    """

    def __init__(
        self, data: Path, out: Path, minutes: float, seeds: Sequence[int], *, finetune: bool = True
    ) -> None:
        self._shards, self._out, self._minutes = data / "shards", out, minutes
        self._seeds, self._finetunes = seeds, finetune
        self._reference = _read_candidate("cav_mae")
        index = json.loads((self._shards / "train" / "index.json").read_text(encoding="utf-8"))
        self._clips, fbank = index["samples"], index["fbank"]
        self._common = [
            f"data.train={self._shards}/train",
            f"fbank.mean={fbank['mean']:.4f}", f"fbank.std={fbank['std']:.4f}",
        ]  # fmt: skip

    def run(
        self, candidates: Sequence[Candidate], jobs: int, columns: Sequence[Column], page: Path | None
    ) -> None:
        """Runs what is left to do, ``jobs`` seeds at a time; shows and writes the table after each candidate.

        Args:
            candidates: A teacher before its students.
            jobs: Runs side by side.
            columns: Of the table.
            page: Whose table is renewed, if any.
        """
        results: list[dict[str, Any]] = []
        for candidate in candidates:
            self.step_seconds(candidate)  # measured alone, before runs share the machine
            with ThreadPoolExecutor(jobs) as pool:
                results += pool.map(lambda seed, one=candidate: self._result(one, seed), self._seeds)
            print(render(results, columns), flush=True)
            if page:
                write_page(page, results, columns)

    def _num_steps(self, candidate: Candidate) -> int:
        if candidate.clips_of is None:
            steps = 60 * self._minutes / self.step_seconds(candidate)
        else:
            other = candidate.clips_of
            steps = candidate.times * self._num_steps(other) * other.batch / candidate.batch
        return max(1, round(steps))

    def step_seconds(self, candidate: Candidate) -> float:
        """Processor seconds of a step, found once for a recipe and its settings.

        A machine's speed drifts within the hours of a comparison, so that each candidate is measured right after the
        reference, whose own first measurement sets the scale.
        """
        path = self._cost_folder(candidate) / "cost.json"
        if not path.is_file():
            if self._cost_folder(candidate) == self._cost_folder(self._reference):
                seconds = self.measure(candidate)
            else:
                usual = self.step_seconds(self._reference)
                now = self.measure(self._reference)
                seconds = usual * self.measure(candidate) / now
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"seconds_per_step": seconds}) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))["seconds_per_step"]

    def _cost_folder(self, candidate: Candidate) -> Path:
        return self._out / "costs" / "_".join([candidate.recipe.stem, *candidate.words])

    def measure(self, candidate: Candidate) -> float:
        """Processor seconds of a step at the machine's present speed, by a short run."""
        folder = self._cost_folder(candidate)
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        first, last = _MEASURED
        words = self._words(candidate, self._seeds[0], last + 1, run, val=None)
        with start_python([*words, "train.log_interval=1"], folder / "run.log") as process:
            (began, before), (ended, after) = (seconds_until(process, run, step) for step in (first, last))
        return (after - before) / (ended - began)

    def _result(self, candidate: Candidate, seed: int) -> dict[str, Any]:
        """What came of a candidate with one seed: trained and measured, unless that is done."""
        folder = self._run(candidate, seed).parent
        path = folder / "result.json"
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if values.get("budget", self._minutes) != self._minutes:
            raise ValueError(
                f"{path} is of {values['budget']:g} processor minutes, not {self._minutes:g}: name another --out"
            )
        if not values:
            values = self._pretrained(candidate, seed)
            write_atomically(path, json.dumps(values, indent=1) + "\n")
        if self._finetunes and not values["finetuned"]:
            values["finetuned"] = self._finetune(folder, seed)
            write_atomically(path, json.dumps(values, indent=1) + "\n")
        return values

    def _pretrained(self, candidate: Candidate, seed: int) -> dict[str, Any]:
        steps, seconds, run = (
            self._num_steps(candidate),
            self.step_seconds(candidate),
            self._run(candidate, seed),
        )
        peak_bytes = run_python(self._words(candidate, seed, steps, run, val="test"), run.with_suffix(".log"))
        measured = read_metrics(run)[-1]
        return {
            "name": candidate.name, "seed": seed, "budget": self._minutes, "steps": steps,
            "clips": steps * candidate.batch,
            "minutes": steps * seconds / 60, "clips_per_second": candidate.batch / seconds,
            "peak_bytes": peak_bytes,
            "measured": {k.removeprefix("val/"): v for k, v in measured.items() if k.startswith("val/")},
            "finetuned": {},
        }  # fmt: skip

    def _run(self, candidate: Candidate, seed: int) -> Path:
        return self._out / candidate.name / f"seed_{seed}" / "pretrain"

    def _words(self, candidate: Candidate, seed: int, steps: int, run: Path, val: str | None) -> list[str]:
        """The command that trains a candidate."""
        planned = candidate.values["train"]["epochs"]
        warmup = candidate.values.get("schedule", {}).get("warmup_epochs", 0) / planned  # a share of the run
        words = [
            "main_pretrain.py", "--config", str(candidate.recipe), *self._common, f"output_dir={run}",
            f"data.val={self._shards / val if val else 'null'}", f"seed={seed}", f"train.steps={steps}",
            f"schedule.warmup_epochs={warmup * steps * candidate.batch / self._clips}",
            f"train.eval_interval={steps}", f"train.checkpoint_interval={steps}", *candidate.words,
        ]  # fmt: skip
        if candidate.teacher is not None:
            words.append(f"objective.teacher={self._run(candidate.teacher, seed)}")
        return words

    def _finetune(self, folder: Path, seed: int) -> dict[str, float]:
        model = yaml.safe_load((folder / "pretrain" / "config.yaml").read_text(encoding="utf-8"))["model"]
        overrides = [f"model.{name}={value}" for name, value in flat(model) if value is not None]
        words = ["--shards", str(self._shards), "--out", str(folder / "finetune"), "--seeds", str(seed)]
        words += ["--init", str(folder / "pretrain"), "--overrides", *overrides]
        run_python(["-m", "engine.demo.finetuning", *words], folder / "finetune.log")
        results = json.loads((folder / "finetune" / "results.json").read_text(encoding="utf-8"))
        return {name: accuracy[0] for name, accuracy in results["accuracy"].items()}


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings by dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found


@contextmanager
def start_python(words: Sequence[str], log: Path) -> Iterator[psutil.Popen]:
    """A program of the project on one thread, ended with the ``with`` block if it still runs.

    Raises:
        RuntimeError: It failed; the end of its log is told.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with new_file(log) as file:
        process = psutil.Popen(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield process
    finally:
        status = process.poll()
        if status is None:
            process.kill()
            process.wait()
        if status:
            last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])
            raise RuntimeError(f"{words[0]} ended with status {status}; {log} ends:\n{last}")


def run_python(words: Sequence[str], log: Path) -> int:
    """Runs a program of the project on one thread and waits for it: the most bytes that one of its processes held.

    Raises:
        RuntimeError: It failed; the end of its log is told.
    """
    most = 0
    with start_python(words, log) as process:
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                most = max(
                    [most, *(one.memory_info().rss for one in [process, *process.children(recursive=True)])]
                )
            time.sleep(0.5)
    return most


def seconds_until(process: psutil.Popen, run: Path, step: int) -> tuple[int, float]:
    """The step that a training process has come to, ``step`` or later, and the processor seconds used until then."""
    while process.poll() is None:
        known = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
        done = max((int(record["step"]) for record in known if "train/loss" in record), default=0)
        if done >= step:
            with suppress(psutil.NoSuchProcess):  # a child that has just ended
                times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
                return done, sum(one.user + one.system for one in times)
        time.sleep(0.05)
    raise RuntimeError(f"the run in {run} ended before step {step}")


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """The options of a comparison; ``out`` is where its runs go by default."""
    parser.add_argument(
        "--data", type=Path, default=Path("data/demo"), help="where the world's shards are, or go"
    )
    parser.add_argument("--out", type=Path, default=Path(out), help="where runs and results go")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="processor minutes of each pretraining run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs side by side")
    parser.add_argument("--write", type=Path, default=None, help="a page whose table is renewed")


def make_world(data: Path) -> None:
    """The demo's world, unless it is there."""
    make_shards(data, (1200, 250, 500))
