"""One node of a job, run as its own process: ``python -m support.node SETTINGS_JSON``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.runs import ROOT

SCRIPT = str(ROOT / "tests" / "support" / "stand_in_training.py")
TORCHRUN = (sys.executable, str(ROOT / "tests" / "support" / "stand_in_torchrun.py"))


def start_node(
    run: Path, *options: str, node: int = 0, nodes: int = 1, **settings: object
) -> subprocess.Popen[str]:
    """Starts a `TrainingJob`, as one node of a SLURM job that there is not if ``nodes`` is above 1."""
    command = [SCRIPT, *(f"--{option}" for option in options), f"--output_dir={run}"]
    value = {
        "command": command,
        "output_dir": str(run),
        "folder": str(run.parent),
        "processes": 2,
        **settings,
    }
    variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    if nodes > 1:
        slurm = {"JOB_ID": 7, "JOB_NUM_NODES": nodes, "NODEID": node, "PROCID": node, "NTASKS": nodes}
        variables |= {f"SLURM_{key}": str(number) for key, number in slurm.items()}
        variables["SUBMITIT_EXECUTOR"] = "slurm"
    return subprocess.Popen(
        [sys.executable, "-m", "support.node", json.dumps(value)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Exit status and output of a node."""
    try:
        output = process.communicate(timeout=seconds)[0]
    finally:
        process.kill()
    return process.returncode, output


if __name__ == "__main__":
    from launch.job import TrainingJob

    given = json.loads(sys.argv[1])
    paths = {key: Path(given.pop(key)) for key in ("output_dir", "folder")}
    job = TrainingJob(command=tuple(given.pop("command")), torchrun=TORCHRUN, **paths, **given)
    print(job())
