"""Keeps the promises of the training programs without training: steps, checkpoints, signals, exit status.

A launcher's test so takes a second where importing torch alone takes several. Its ranks agree on nothing:
SIGTERM, which torchrun sends when one of them has failed, simply ends the others.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

OPTIONS = dict(argument.removeprefix("--").split("=") for argument in sys.argv[1:])
RUN = Path(OPTIONS["output_dir"])
STEPS, SECONDS = int(OPTIONS.get("steps", "10")), float(OPTIONS.get("seconds", "0.02"))
CRASH_AT, CRASH_RANK = int(OPTIONS.get("crash_at", "-1")), OPTIONS.get("crash_rank", "0")
RANK = os.environ["RANK"]


def save(step: int) -> None:
    if RANK == "0":
        (RUN / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)


def say(state: str, step: int) -> None:
    if RANK == "0":
        temporary = RUN / ".status"
        temporary.write_text(json.dumps({"state": state, "step": step, "total_steps": STEPS, "message": ""}))
        temporary.replace(RUN / "status.json")


def main() -> int:
    stop = []
    signal.signal(signal.SIGUSR1, lambda *_: stop.append(1))
    RUN.mkdir(parents=True, exist_ok=True)
    started = RUN / f"started-{RANK}"
    with started.open("a") as file:
        file.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    first = not (RUN / "launch" / "history.jsonl").exists()
    saved = (int(path.name[5:]) for path in (RUN / "checkpoints").glob("step_*"))
    step = max(saved, default=0)
    say("running", step)
    # With hold, the first attempt goes on until it is told to stop.
    while step < STEPS or ("hold" in OPTIONS and first):
        time.sleep(SECONDS)
        step += 1
        if 0 <= CRASH_AT <= step and CRASH_RANK == RANK and first:  # a late rank may begin beyond it
            os.kill(os.getpid(), signal.SIGKILL)
        if step % 5 == 0:
            save(step)
        if stop and "deaf" not in OPTIONS:
            save(step)
            say("stopped", step)
            return 75
    say("finished", step)
    return 0


if __name__ == "__main__":
    sys.exit(main())
