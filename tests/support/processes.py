"""Runs a function in several real processes, as torchrun would, and brings back what each returns."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.forking import run_programs

_ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This environment with the repository importable and one thread a process."""
    paths = f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | more


def run_program(*command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs a program, named by its file or by ``-m MODULE``, in a process of its own."""
    return run_programs([command], [environment()], timeout)[0]


def run_world(*command: str, world_size: int, timeout: float = 240) -> list[subprocess.CompletedProcess[str]]:
    """Runs a program in ``world_size`` processes that see what torchrun would tell them; in rank order."""
    return run_worlds([command], world_size, timeout)[0]


def run_worlds(
    commands: Sequence[Sequence[str]], world_size: int, timeout: float = 240
) -> list[list[subprocess.CompletedProcess[str]]]:
    """The same of several programs at the same time, each in a world of its own."""
    ranks = []
    for _ in commands:
        address = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks += [environment(RANK=str(rank), LOCAL_RANK=str(rank), **address) for rank in range(world_size)]
    done = run_programs([command for command in commands for _ in range(world_size)], ranks, timeout)
    return [done[first : first + world_size] for first in range(0, len(done), world_size)]


def run_ranks(target: str, world_size: int, timeout: float = 240, **arguments: Any) -> list[Any]:
    """Calls ``module:function(**arguments)`` in ``world_size`` processes; returns the results in rank order.

    Arguments go as JSON, results as tensors and plain values.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "support.processes", target, json.dumps(arguments), folder]
        done = run_world(*command, world_size=world_size, timeout=timeout)
        codes = [rank.returncode for rank in done]
        said = [
            f"rank {i}:\n{(rank.stdout + rank.stderr)[-4000:]}" for i, rank in enumerate(done) if codes[i]
        ]
        assert not any(codes), "\n".join([f"exit statuses {codes}", *said])
        return [torch.load(f"{folder}/{rank}", weights_only=True) for rank in range(world_size)]


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    torch.save(result, f"{sys.argv[3]}/{os.environ['RANK']}")
