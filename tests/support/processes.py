"""Runs a function in several real processes, as torchrun would, and brings back what each returns."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This environment with the repository importable and one thread a process."""
    paths = f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | more


def run_ranks(target: str, world_size: int, timeout: float = 240, **arguments: Any) -> list[Any]:
    """Calls ``module:function(**arguments)`` in ``world_size`` processes; returns the results in rank order.

    Arguments go as JSON, results as tensors and plain values.
    """
    with tempfile.TemporaryDirectory() as folder:
        port = str(free_port())
        processes = []
        for rank in range(world_size):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            command = [
                sys.executable,
                "-m",
                "support.processes",
                target,
                json.dumps(arguments),
                f"{folder}/{rank}",
            ]
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment(**variables),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        codes = [process.returncode for process in processes]
        said = "\n".join(f"rank {i}:\n{output[-4000:]}" for i, output in enumerate(outputs) if codes[i])
        assert not any(codes), f"exit statuses {codes}\n{said}"
        return [torch.load(f"{folder}/{rank}", weights_only=True) for rank in range(world_size)]


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    torch.save(result, sys.argv[3])
