"""A small fine-tuning run that is disturbed at random and must end as the undisturbed one.

Signals, kills, damaged files, full disks, refused settings and other world sizes come at moments drawn from a seed.
After each the same command is given again. tests/reliability has a short campaign, benchmarks/kill_campaign.py a long
one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
import yaml
from support.processes import environment
from support.shards import make_shards
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.records.runlog import read_metrics
from launch.torchrun import Torchrun

ROOT = Path(__file__).resolve().parents[2]
#: Settings that a run refuses to change on the way, and what its message names.
REFUSED = {
    "seed=5": "seed",
    "model.num_heads=1": "model.num_heads",
    "model.modality_depth=2": "model.modality_depth",
    "train.parallel.zero_stage=2": "zero_stage",
    "optimizer.lr=-1": "optimizer.lr",
    "objective.freeze_encoder=true": "objective.freeze_encoder",
    "train.steps=1": "train.steps",
}
#: Numbers that tell of time or of the attempt, not of what was learned.
_OF_TIME = ("samples_per_second", "data_wait_share", "mfu", "unreadable")
#: Seconds without a word, after which an attempt counts as one that hangs; on a machine with other work it takes long.
_PATIENCE = 300.0


@dataclass(frozen=True)
class Event:
    """One disturbance.

    Attributes:
        kind: ``kill``, ``term``, ``usr1``, ``damage``, ``torn``, ``full``, ``refused``.
        when: Of signals and kills: ``start``, ``step``, ``write`` or ``evaluation``.
        steps: How many steps after the attempt's beginning, for ``step`` and ``write``.
        delay: Seconds more.
        world: Processes of the attempt.
        choice: Picks the victim, the file, the setting.
    """

    kind: str
    when: str
    steps: int
    delay: float
    world: int
    choice: int


def plan_events(count: int, seed: int, most_steps: int, worlds: tuple[int, ...] = (1,)) -> list[Event]:
    """The campaign, a pure function of its arguments; every kind comes in turn, in an order of the seed."""
    rng = random.Random(seed)
    kinds = ["kill", "usr1", "damage", "term", "kill", "torn", "full", "refused", "kill", "damage", "usr1"]
    moments = ["step", "write", "start", "step", "evaluation", "write"]
    rng.shuffle(kinds)
    rng.shuffle(moments)
    return [
        Event(
            kinds[number % len(kinds)],
            moments[number % len(moments)],
            rng.randrange(most_steps),
            rng.uniform(0, 0.3),
            rng.choice(worlds),
            rng.randrange(1 << 16),
        )
        for number in range(count)
    ]


class _Patience:
    """Waits for an attempt as long as it says something from time to time."""

    def __init__(self, log: Path) -> None:
        self._log, self._size, self._since = log, -1, 0.0

    def is_over(self) -> bool:
        """Whether the log has not grown for too long."""
        size = self._log.stat().st_size
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since > _PATIENCE


class Campaign:
    """A run below ``folder``, beside one that nothing disturbs.

    Args:
        folder: Where everything goes.
        steps: Of the run.
        interval: Steps between checkpoints.
        zero_stage: DeepSpeed's.
    """

    def __init__(self, folder: Path, steps: int, interval: int = 3, zero_stage: int = 1) -> None:
        self.folder, self.steps, self.run = folder, steps, folder / "disturbed"
        self.zero_stage = zero_stage
        shards = make_shards(folder / "shards", 24, 12, seconds=0.3, frames=2)
        self.config = folder / "run.yaml"
        self.config.write_text(yaml.safe_dump(_config(str(shards), steps, interval, zero_stage)))
        self.worlds: set[int] = set()
        self.attempts = 0

    def undisturbed(self) -> None:
        """Runs the other one to its end."""
        code = self._wait(self._start(1, self.folder / "undisturbed"))
        assert code == 0, self._log()

    def disturb(self, event: Event) -> str:
        """Lets ``event`` happen, and returns what came of it.

        Raises:
            AssertionError: The program ended otherwise than it says, or not at all.
        """
        if event.kind in ("damage", "torn"):
            return self._damage(event) if event.kind == "damage" else self._tear()
        if event.kind == "refused":
            return self._refuse(event)
        if event.kind == "full":
            return self._fill_disk(event)
        return self._signal(event)

    def finish(self, world: int = 1) -> None:
        """The same command until it ends."""
        for _ in range(4):
            code = self._wait(self._start(world, self.run))
            if code == 0:
                return
            assert code == 75, f"ended with {code}\n{self._log()}"
        raise AssertionError("four attempts did not end")

    def differences(self) -> list[str]:
        """In what the disturbed run differs from the other: nothing, if all is well."""
        ours, theirs = self.run, self.folder / "undisturbed"
        exact = self.worlds <= {1}
        found = [f"{name} differs" for name in _texts(ours, theirs)]
        for what, read in {"metrics": _metrics, "curves": _curves, "evaluation": _evaluation}.items():
            found += [f"{what}: {line}" for line in _compare(read(ours), read(theirs), exact)]
        for pattern in ("checkpoints/step_*/model.safetensors", "average/*.safetensors"):
            mine, other = ({p.relative_to(run): p for p in run.glob(pattern)} for run in (ours, theirs))
            # Which older ones are left depends on the checkpoints that there were meanwhile.
            if max(mine, default=None) != max(other, default=None):
                found.append(f"{sorted(map(str, mine))} instead of {sorted(map(str, other))}")
            found += [f"{name}: weights differ" for name in mine.keys() & other.keys()
                      if not _same_weights(mine[name], other[name], exact)]  # fmt: skip
        left = [*ours.glob("checkpoints/.*"), *ours.rglob("*.partial")]
        return found + [f"left behind: {path.relative_to(ours)}" for path in left]

    def status(self) -> dict[str, Any]:
        """What the disturbed run last said."""
        path = self.run / "status.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _signal(self, event: Event) -> str:
        before = self.status()
        child = self._start(event.world, self.run)
        reached = self._await(child, self._moment(event, before))
        time.sleep(event.delay)
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}[event.kind]
        workers = self._workers(child, event.world)
        for pid in workers if event.choice % 2 else workers[event.choice % max(1, len(workers)) :][:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        code = self._wait(child)
        status = self.status()
        said = f"{event.kind} at {event.when}{'' if reached else ' (too late)'}: exit {code}, {status.get('state')}"
        said += f" at step {status.get('step')}"
        if code == 0:
            assert status["state"] == "finished", said
        elif event.kind != "kill":
            assert event.world > 1 or code == 75, f"{said}\n{self._log()}"
            early = event.when == "start" or "before training began" in status.get("message", "")
            assert status["state"] == "stopped" or early, f"{said}\n{self._log()}"
        return said

    def _moment(self, event: Event, before: dict[str, Any]) -> Callable[[], bool]:
        """When the attempt that has just begun has come as far as the event wants it."""
        begun = time.time()
        first = before.get("step", 0)

        def fresh() -> dict[str, Any]:
            path = self.run / "status.json"
            return self.status() if path.is_file() and path.stat().st_mtime >= begun else {}

        def steps_taken() -> bool:
            taken = [record["step"] for record in read_metrics(self.run)] if self._records() else [0]
            return bool(fresh()) and max(taken, default=0) >= min(first + event.steps, self.steps - 1)

        return {
            "start": lambda: time.time() - begun > 8 * event.delay,
            "step": steps_taken,
            "write": lambda: bool(fresh()) and any(self.run.glob("checkpoints/.writing_*")),
            "evaluation": lambda: fresh().get("state") == "evaluating",
        }[event.when]

    def _records(self) -> bool:
        return (self.run / "metrics.jsonl").is_file()

    def _damage(self, event: Event) -> str:
        checkpoints = sorted(self.run.glob("checkpoints/step_*"))
        if len(checkpoints) < 2:
            return "damage: not while there is no other checkpoint"
        files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file())
        path = files[event.choice % len(files)]
        content = path.read_bytes()
        half = len(content) // 2
        manner = ("emptied", "cut", "zeroed", "removed")[event.choice // 16 % 4]
        if manner == "removed":
            path.unlink()
        else:
            zeroed = content[:half] + bytes(32) + content[half + 32 :]
            path.write_bytes({"emptied": b"", "cut": content[:half], "zeroed": zeroed}[manner])
        if path.is_file() and path.read_bytes() == content:
            return "damage: it was zero there"
        return f"damage: {checkpoints[-1].name}/{path.name} {manner}"

    def _tear(self) -> str:
        if self._records():
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write('{"step": 1, "train/lo')
        return "torn line in metrics.jsonl"

    def _refuse(self, event: Event) -> str:
        if not any(self.run.glob("checkpoints/step_*")):
            return "refused: nothing to resume yet"
        setting, name = sorted(REFUSED.items())[event.choice % len(REFUSED)]
        if setting == f"train.parallel.zero_stage={self.zero_stage}":
            return "refused: that is the run's own setting"
        if setting == "train.steps=1" and self.status().get("step", 0) <= 1:
            return "refused: not beyond that step yet"
        code = self._wait(self._start(event.world, self.run, setting))
        said = self._log()
        assert code not in (0, 75), f"{setting} was not refused\n{said}"
        assert name in said, said
        assert event.world > 1 or "Traceback" not in said, said  # torchrun adds one of its own
        assert self.status()["state"] == "failed", said
        return f"{setting} refused"

    def _fill_disk(self, event: Event) -> str:
        code = self._wait(self._start(event.world, self.run, file_bytes=30_000 + event.choice))
        status = self.status()
        if code == 0:
            return "disk full: it was done"
        assert status.get("state") == "failed", f"exit {code}, {status}\n{self._log()}"
        return f"disk full: {status['message'][:60]}"

    def _start(self, world: int, run: Path, *more: str, file_bytes: int | None = None) -> Torchrun:
        self.attempts += 1
        if run == self.run and not more:
            self.worlds.add(world)
        script = [str(ROOT / "main_finetune.py"), "--config", str(self.config), f"output_dir={run}", *more]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
        command = [sys.executable, *([] if world == 1 else torchrun), *script]
        self._last_log = self.folder / f"attempt-{self.attempts}.log"

        if file_bytes is not None:
            command = ["bash", "-c", f'ulimit -f {file_bytes // 1024}; exec "$@"', "bash", *command]
        with self._last_log.open("w") as log:
            return Torchrun.start(command, environment(), self.folder, output=log)

    def _log(self) -> str:
        return self._last_log.read_text(errors="replace")[-4000:]

    def _await(self, child: Torchrun, moment: Callable[[], bool]) -> bool:
        patience = _Patience(self._last_log)
        while not moment():
            if child.exit_code() is not None:
                return False
            assert not patience.is_over(), "the moment never came"
            time.sleep(0.005)
        return True

    def _wait(self, child: Torchrun) -> int:
        patience = _Patience(self._last_log)
        try:
            while child.exit_code() is None:
                child.watch()
                assert not patience.is_over(), f"it does not end\n{self._log()}"
                time.sleep(0.02)
            return child.process.returncode
        finally:
            child.kill()

    @staticmethod
    def _workers(child: Torchrun, world: int) -> list[int]:
        return [child.process.pid] if world == 1 else child.workers()


def _config(shards: str, steps: int, interval: int, zero_stage: int) -> dict[str, Any]:
    model = {
        "name": "cav_mae_tiny",
        "image_size": 32,
        "audio_length": 32,
        "num_mel_bins": 32,
        "embed_dim": 24,
    }
    return {
        "data": {"train": shards, "val": shards, "num_workers": 0},
        "model": model | {"num_heads": 2, "modality_depth": 1},
        "objective": {"modalities": "audio_visual", "loss": "cross_entropy"},
        "optimizer": {"lr": 1e-3},
        "averaging": {"first_epoch": 1},
        "evaluation": {"batch_size": 4, "bootstrap": 20, "pictures": False},
        "train": {
            "steps": steps,
            "log_interval": 1,
            "eval_interval": 4,
            "checkpoint_interval": interval,
            "parallel": {"global_batch_size": 6, "precision": "fp32", "zero_stage": zero_stage},
        },
    }


def _metrics(run: Path) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for record in read_metrics(run):
        for name, value in record.items():
            key = (name, int(record["step"]))
            if name != "step" and not any(word in name for word in _OF_TIME):
                found[key if key not in found else (*key, "again")] = value
    return found


def _curves(run: Path) -> dict[Any, float]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[Any, float] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            if tag.startswith(("train/", "val/")) and not any(word in tag for word in _OF_TIME):
                key = (tag, event.step)
                found[key if key not in found else (*key, "again")] = event.value
    return found


def _evaluation(run: Path) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for path in sorted(run.glob("evaluation/*/metrics.json")):
        for kind, values in json.loads(path.read_text())["results"].items():
            found |= {(path.parent.name, kind, name): value for name, value in values.items()}
    return found


def _compare(ours: dict[Any, float], theirs: dict[Any, float], exact: bool) -> list[str]:
    lines = [f"{key} only in one" for key in sorted(ours.keys() ^ theirs.keys(), key=str)]
    for key in sorted(ours.keys() & theirs.keys(), key=str):
        one, other = ours[key], theirs[key]
        both = None not in (one, other) and not (math.isnan(one) and math.isnan(other))
        # Another number of processes adds in another order; a score over few clips then moves by a clip.
        near = both and (
            math.isclose(one, other, rel_tol=0, abs_tol=0.0) if exact else _near(key, one, other)
        )
        if (both and not near) or (one is None) != (other is None):
            lines.append(f"{key}: {one} instead of {other}")
    return lines


def _near(key: Any, one: float, other: float) -> bool:
    return not str(key[0]).startswith("train/") or math.isclose(one, other, rel_tol=2e-3, abs_tol=2e-3)


def _same_weights(one: Path, other: Path, exact: bool) -> bool:
    if exact:
        return one.read_bytes() == other.read_bytes()
    ours, theirs = safetensors.numpy.load_file(one), safetensors.numpy.load_file(other)
    return all(abs(ours[name] - theirs[name]).max() < 5e-3 for name in theirs)


def _texts(ours: Path, theirs: Path) -> list[str]:
    """Files that must be the same to the last byte but for the run's own name."""
    return [
        name
        for name in ("status.json", "classes.json", "config.yaml")
        if (ours / name).read_text().replace(str(ours), "")
        != (theirs / name).read_text().replace(str(theirs), "")
    ]
