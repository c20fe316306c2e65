"""A run small enough to be started, interrupted and resumed in a test, and what is compared of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from support.processes import environment
from support.shards import make_shards

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = str(ROOT / "main_pretrain.py")

_MODEL = {
    "name": "cav_mae_tiny", "image_size": 96, "audio_length": 96, "num_mel_bins": 64, "embed_dim": 96,
    "num_heads": 4, "modality_depth": 3, "decoder_embed_dim": 48, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip


def write_run_config(folder: Path, steps: int, global_batch_size: int = 16) -> Path:
    """Shards and a config that trains on them, below ``folder``; returns the config file."""
    shards = make_shards(folder / "shards", 48, 16)
    config = {
        "data": {"train": str(shards), "num_workers": 1},
        "model": _MODEL,
        "optimizer": {"lr": 1e-3},
        "train": {
            "steps": steps,
            "log_interval": 1,
            "checkpoint_interval": 40,
            "parallel": {"global_batch_size": global_batch_size, "precision": "fp32"},
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def launcher(program: str, *arguments: str) -> list[str]:
    """The command line of ``python -m launch.PROGRAM``."""
    return [sys.executable, "-m", f"launch.{program}", *arguments]


def launcher_environment(**more: str) -> dict[str, str]:
    """The repository importable from any folder, one thread a process."""
    return environment(**more) | {"PYTHONPATH": str(ROOT)}


def losses(run: Path) -> dict[int, float]:
    """Training loss by step; asserts that no step is logged twice."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "train/loss" in record]
    assert len(steps) == len(set(steps)), "a step is logged twice"
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def history(run: Path) -> list[dict]:
    """What the launcher noted of each attempt, in order."""
    path = run / "launch" / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def step_of(run: Path) -> int:
    """The last step logged so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0
