"""``attempts.jsonl``: each time that a run was begun or resumed, where and with what; a line each."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from atomic import open_to_append

NAME = "attempts.jsonl"
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Attempt:
    """One process group that trained at a run.

    Attributes:
        step: Steps taken before it.
        total_steps: Of the whole run.
        world_size: Processes.
        device: Of rank 0.
        parameters: Of the model.
        clips: Of the training set, or places of an epoch.
        flops_per_sample: Of a training step.
        peak_flops: What was measured as one device's peak in FLOP/s, if it was.
    """

    step: int
    total_steps: int
    world_size: int
    device: str
    parameters: int
    clips: int
    flops_per_sample: float
    peak_flops: float | None = None

    def note(self, run: Path) -> None:
        """Adds a line to the run's file, with the time and the versions of the code and of torch."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(self)}
        line |= {"code": code_version(), "torch": torch.__version__}
        with open_to_append(run / NAME) as file:
            file.write(json.dumps(line).encode() + b"\n")


def code_version() -> str:
    """The commit of Earsight's own folder, ``-dirty`` where files differ from it; empty where git can't tell."""
    if not (_ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def device_name(device: torch.device) -> str:
    """What a device is called: a GPU by its model, a processor by its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
