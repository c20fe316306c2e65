"""Run folders in which somebody hid a call: it leaves a file where it was run."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from support.training import fit

from engine.checkpoints.folder import CheckpointError, find_checkpoints
from engine.checkpoints.integrity import STATE, write_sealed
from engine.parallel.world import World, distributed

#: Steps of a run that is interrupted, and of the resumed one.
SHORT: dict[str, Any] = {"steps": 3, "signal_rank": 0, "signal_step": 1}
WHOLE: dict[str, Any] = {"steps": 3}


class Bomb:
    """Unpickled in full, it makes the file ``marker``."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def spoil(run: Path, copy: Path, pattern: str, marker: Path) -> None:
    """A copy of a run whose newest checkpoint has a bomb in the files of DeepSpeed that match."""
    shutil.copytree(run, copy)
    checkpoint = find_checkpoints(copy)[-1]
    files = sorted((checkpoint.path / "deepspeed").glob(pattern))
    assert files, pattern
    for path in files:
        torch.save({**torch.load(path, weights_only=False), "bomb": Bomb(marker)}, path)
    write_sealed(
        checkpoint.path / STATE, asdict(checkpoint.state) | {"files": {}}
    )  # whoever can do the one can this


def plant_universal(run: Path, copy: Path, marker: Path) -> None:
    """A copy of a run with a finished conversion beside the state, as an earlier version kept it, full of bombs."""
    shutil.copytree(run, copy)
    universal = find_checkpoints(copy)[-1].path / "universal"
    folder = universal / "zero" / "model.encoder.norm.joint.weight"
    folder.mkdir(parents=True)
    torch.save({"param": Bomb(marker)}, folder / "fp32.pt")
    torch.save({"bomb": Bomb(marker)}, universal / "mp_rank_00_model_states.pt")


def resume_spoilt_runs(folder: str) -> dict[str, str]:
    """Makes spoilt copies of runs and resumes them in one process; what became of each, by name.

    Args:
        folder: Holds the runs ``zero0`` and ``zero1`` of two processes.
    """
    base = Path(folder)
    marker = base / "ran"
    with distributed() as world:
        fit(world, str(base / "zero2"), zero_stage=2, **SHORT)
        spoil(base / "zero0", base / "model", "mp_rank_*", marker)
        spoil(base / "zero2", base / "optimizer", "*optim_states.pt", marker)
        spoil(base / "zero1", base / "converted", "*optim_states.pt", marker)
        plant_universal(base / "zero1", base / "planted", marker)
        stages = {"model": 0, "optimizer": 2, "converted": 1, "planted": 1}
        outcomes = {name: _resume(world, str(base / name), stage) for name, stage in stages.items()}
        return {**outcomes, "listening": " ".join(listening())}


def listening() -> list[str]:
    """Addresses, in hexadecimal digits, at which this process waits for connections."""
    names = [os.readlink(path) for path in list(Path("/proc/self/fd").iterdir()) if path.is_symlink()]
    own = {name.removeprefix("socket:[").removesuffix("]") for name in names if name.startswith("socket:[")}
    rows = [
        line.split()
        for kind in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]
    ]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in own]


def _resume(world: World, run: str, zero_stage: int) -> str:
    try:
        return f"resumed to step {fit(world, run, zero_stage=zero_stage, **WHOLE)['step']}"
    except CheckpointError as error:
        return str(error)
