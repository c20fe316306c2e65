"""Submitting runs to a SLURM cluster, and doing to them what clusters do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.runs import PRETRAIN, history, launcher, launcher_environment, losses, step_of


@dataclass
class Cluster:
    """Attributes: folder: where runs are submitted from; variables: how SLURM's programs find the cluster."""

    folder: Path
    variables: dict[str, str]

    def submit(self, name: str, *overrides: str, nodes: int = 2, **settings: object) -> Path:
        """Submits a pretraining with one process a node; returns the run's folder."""
        defaults = {"gpus_per_node": 0, "cpus_per_process": 1, "minutes": 10, "warning_seconds": 30}
        settings = defaults | {"preflight": "false", "nodes": nodes, "name": name} | settings
        flags = [f"--{key}={value}" for key, value in settings.items()]
        self.run(*launcher("submit", *flags, "--", PRETRAIN, "--config", "run.yaml", *overrides))
        return self.folder / "runs" / name

    def run(self, *command: str) -> str:
        """Runs a command on the cluster's login node and returns what it prints."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=launcher_environment(**self.variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def wait_for_step(self, run: Path, step: int) -> None:
        self.wait(run, lambda: step_of(run) >= step, f"step {step}")

    def wait_for_end(self, run: Path, seconds: float = 480) -> list[str]:
        """Waits until the run has finished for good; returns what the launcher decided after each attempt."""
        self.wait(run, lambda: actions(run)[-1:] in (["finish"], ["fail"]), "its end", seconds)
        assert actions(run)[-1] == "finish", f"{history(run)}\n{self.logs(run)}"
        return actions(run)

    def wait(self, run: Path, done: Callable[[], bool], what: str, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"{run} did not come to {what}:\n{self.logs(run)}"
            time.sleep(0.2)

    def wait_until_idle(self) -> None:
        """Waits until no job is left, so that a test finds both nodes free."""
        while self.run("squeue", "--noheader").strip():
            time.sleep(0.5)

    def logs(self, run: Path, whole: bool = False) -> str:
        files = sorted((run / "launch" / "logs").glob("*.out"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[0 if whole else -4000 :]}" for file in files)

    def job_id(self, run: Path) -> str:
        return self.run("squeue", "--noheader", "--array", "--format=%i", f"--name={run.name}").split()[0]

    def kill_node(self, name: str) -> None:
        """All processes of a node at once, as when it loses its power; then SLURM is told that it is down."""
        of_node = [pid for pid in _processes() if f"SLURMD_NODENAME={name}" in _words(pid, "environ")]
        steps = {_parent(pid) for pid in of_node} - set(of_node)
        steps = {pid for pid in steps if _words(pid, "cmdline")[0].startswith("slurmstepd")}
        for pid in (*self._daemon(name), *steps, *of_node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=vanished")

    def revive_node(self, name: str) -> None:
        """Starts a node's daemon, which makes SLURM use it again (up.sh: ``ReturnToService=2``)."""
        self.run("slurmd", "-N", name)
        deadline = time.monotonic() + 120
        while "down" in self.run("sinfo", "--noheader", f"--nodes={name}", "--format=%T"):
            assert time.monotonic() < deadline, f"{name} does not come back"
            time.sleep(0.5)

    def _daemon(self, name: str) -> list[int]:
        return [pid for pid in _processes() if _words(pid, "cmdline")[:3] == ["slurmd", "-N", name]]

    def workers(self, run: Path) -> list[int]:
        """Process ids of the run's training processes, without their loader processes."""
        found = {}
        for pid in _processes():
            words = _words(pid, "cmdline")
            if f"--output_dir={run}" in words and "torch.distributed.run" not in words:
                found[pid] = _parent(pid)
        return sorted(pid for pid, parent in found.items() if parent not in found)


def actions(run: Path) -> list[str]:
    """What the launcher decided after each attempt, in order."""
    return [attempt["action"] for attempt in history(run)]


def assert_same_losses(run: Path, reference: Path) -> None:
    """Every step of the interrupted run has exactly the loss of the uninterrupted one."""
    interrupted, expected = losses(run), losses(reference)
    different = [step for step in expected if interrupted.get(step) != expected[step]]
    assert not different, f"losses differ first in step {different[0]} of {len(expected)}"
    assert interrupted.keys() == expected.keys()


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _words(pid: int, file: str) -> list[str]:
    """``cmdline`` or ``environ`` of a process; one empty word for one that is gone or another's."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return [""]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
