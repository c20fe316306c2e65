"""Kills a small two-rank run again and again, and compares what comes out with a run that was left alone.

    python benchmarks/kill_campaign.py --kills 30 --seed 0

Kill -9 of one rank, of all ranks or of torchrun itself, at moments drawn from the seed: so many steps after the
run went on and a moment later, or a moment after a checkpoint has begun to be written. (Counted as such is
a kill that leaves the unfinished folder behind.) After each kill the same command is started again.
Reports for each kill where it came, the step gone on from and the steps computed twice; at the end whether every
step's loss equals the undisturbed run's exactly, and the time lost. With ``--clean N`` it also counts how many of
N undisturbed runs exit with status 0. Exit status 0 only if all is as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.runs import PRETRAIN, losses, step_of, write_run_config  # noqa: E402

from launch.progress import newest_checkpoint  # noqa: E402
from launch.torchrun import Torchrun, worker_environment  # noqa: E402

_COMMAND = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", PRETRAIN, "--config", "run.yaml")
_VICTIMS = ("rank 0", "rank 1", "all ranks", "torchrun")


@dataclass(frozen=True)
class Kill:
    """After so many steps, or at the first checkpoint then, and so many seconds more, the victim dies."""

    steps: int
    seconds: float
    in_write: bool
    victim: str


def plan_kills(count: int, seed: int, most_steps: int) -> list[Kill]:
    """The campaign, a pure function of its arguments: every second kill aims at the writing of a checkpoint."""
    rng = random.Random(seed)
    kills = []
    for number in range(count):
        in_write = number % 2 == 0
        seconds = rng.uniform(0, 0.05 if in_write else 0.3)
        kills.append(Kill(rng.randrange(most_steps), seconds, in_write, rng.choice(_VICTIMS)))
    return kills


def main() -> int:
    options = _parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.folder or name)
        folder.mkdir(parents=True, exist_ok=True)
        write_run_config(folder, options.steps)
        started = time.monotonic()
        _run_to_end(folder, folder / "undisturbed")
        undisturbed = time.monotonic() - started
        print(f"undisturbed: {options.steps} steps in {undisturbed:.0f} s", flush=True)
        killed, disturbed = _campaign(options, folder)
        clean = 0
        for done in range(1, options.clean + 1):
            clean += _exits_cleanly(folder, done)
            if done % 10 == 0:
                print(f"clean exits so far: {clean} of {done}", flush=True)
    same = disturbed["different"] == 0
    print(f"{killed} kills in {disturbed['runs']} runs of {options.steps} steps")
    print(f"{disturbed['in_write']} of them while a checkpoint was written")
    print(f"losses: {'all equal' if same else str(disturbed['different']) + ' DIFFERENT'}")
    print(f"steps computed twice: {disturbed['lost_steps'] / max(killed, 1):.1f} a kill")
    seconds = disturbed["seconds"] - disturbed["runs"] * undisturbed
    print(f"time lost: {seconds:.0f} s, {seconds / max(killed, 1):.1f} s a kill (starting again included)")
    print(f"clean exits: {clean} of {options.clean}")
    return 0 if same and clean == options.clean else 1


def _campaign(options: argparse.Namespace, folder: Path) -> tuple[int, dict[str, float]]:
    """Runs are disturbed one after another until the planned kills are used up."""
    kills = plan_kills(options.kills, options.seed, options.most_steps)
    expected = losses(folder / "undisturbed")
    total = {"runs": 0, "different": 0, "in_write": 0, "lost_steps": 0, "seconds": 0.0}
    done = 0
    while done < len(kills):
        run, started = folder / f"disturbed-{total['runs']}", time.monotonic()
        total["runs"] += 1
        while done < len(kills):
            outcome = _run_and_kill(folder, run, kills[done])
            if outcome is None:  # finished before the kill came
                break
            done += 1
            total["in_write"] += outcome["in_write"]
            total["lost_steps"] += outcome["lost_steps"]
            print(json.dumps({"kill": done, "run": run.name, **outcome}), flush=True)
        _run_to_end(folder, run)
        total["seconds"] += time.monotonic() - started
        found = losses(run)
        total["different"] += sum(found.get(step) != loss for step, loss in expected.items())
        total["different"] += len(found.keys() - expected.keys())
    return done, total


def _run_and_kill(folder: Path, run: Path, kill: Kill) -> dict | None:
    """Starts or resumes ``run`` and kills it; None if it was faster."""
    before, left_over, reached = run_stamp(run), _writings(run), newest_checkpoint(run) or 0
    child = _start(folder, run)
    try:
        while run_stamp(run) == before:  # until this attempt trains
            if child.exit_code() is not None:
                return None
            time.sleep(0.02)
        child.watch()
        victims = _victims(child, kill.victim)
        while step_of(run) < reached + kill.steps or (kill.in_write and not _writings(run) - left_over):
            if child.exit_code() is not None:
                return None
            time.sleep(0.002)
        time.sleep(kill.seconds)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if child.process.wait(120) == 0:
            return None
    finally:
        child.kill()
    step, checkpoint = step_of(run), newest_checkpoint(run) or 0
    in_write = bool(_writings(run) - left_over)
    return {"victim": kill.victim, "in_write": in_write, "step": step, "goes_on_from": checkpoint,
            "lost_steps": max(0, step - checkpoint)}  # fmt: skip


def run_stamp(run: Path) -> int:
    """Changes whenever the run says how it is."""
    status = run / "status.json"
    return status.stat().st_mtime_ns if status.exists() else 0


def _writings(run: Path) -> set[tuple[str, int]]:
    """Checkpoints being written, or left unfinished by an earlier kill (those no longer change)."""
    found = set()
    for path in (run / "checkpoints").glob(".writing_*"):
        with contextlib.suppress(FileNotFoundError):  # renamed in between
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def _victims(child: Torchrun, victim: str) -> list[int]:
    if victim == "torchrun":
        return [child.process.pid]
    workers = child.workers()
    return workers if victim == "all ranks" else workers[int(victim[-1]) :][:1]


def _start(folder: Path, run: Path) -> Torchrun:
    command = [sys.executable, "-m", *_COMMAND, f"output_dir={run}"]
    environment = worker_environment(processes=2, cpus_per_process=1)
    with (folder / f"{run.name}.log").open("a") as log:
        return Torchrun.start(command, environment, folder, output=log)


def _run_to_end(folder: Path, run: Path) -> None:
    child = _start(folder, run)
    code = child.process.wait()
    child.kill()
    if code != 0:
        raise SystemExit(f"{run.name} ended with {code}; its log is {folder / run.name}.log")


def _exits_cleanly(folder: Path, number: int) -> bool:
    run = folder / f"clean-{number}"
    command = [sys.executable, "-m", *_COMMAND, f"output_dir={run}", "train.steps=3"]
    done = subprocess.run(command, cwd=folder, env=worker_environment(2, 1), capture_output=True, text=True)
    if done.returncode != 0:
        print(f"exit {done.returncode} of a run left alone:\n{done.stderr[-2000:]}", flush=True)
    return done.returncode == 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="decides when and whom")
    parser.add_argument("--steps", type=int, default=240, help="steps of the run")
    parser.add_argument("--most_steps", type=int, default=60, help="a kill comes at most so many steps later")
    parser.add_argument("--clean", type=int, default=0, help="runs left alone, to count clean exits")
    parser.add_argument("--folder", help="keep the runs here; a temporary folder otherwise")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
