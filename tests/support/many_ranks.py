"""What each rank asks of a run's folder and of shards, counted; and what ranks agree on that see different things."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from support.small_mavil import small_mavil

from engine.checkpoints.saving import CheckpointWriter
from engine.cli import _held
from engine.config import PretrainConfig, parse_config
from engine.objectives.mavil_self_training import MavilSelfTraining, MavilSelfTrainingConfig
from engine.parallel.world import World, distributed
from engine.tasks import pretrain as pretraining
from engine.training import stop
from models import FbankConfig
from models.layers.masking import MaskConfig
from models.weights.description import Description, save_described

_AUDITED = {"open": "open", "os.listdir": "list", "os.scandir": "list"}
_DESCRIPTOR = re.compile(r"/proc/\w+/fd/\d+")


class Requests:
    """Notes what this process asks of files below a folder; not what safetensors opens by itself.

    Args:
        folder: The folder.

    Attributes:
        made: By phase, what was asked, such as ``stat run/config.yaml``.
        phase: What is being done.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self.phase = folder, ""
        self.made: dict[str, list[str]] = {}
        sys.addaudithook(self._audit)
        for kind, names in {"stat": ("stat", "lstat"), "sync": ("fsync",)}.items():
            for name in names:
                patch.object(os, name, self._noting(kind, getattr(os, name))).start()
        patch.object(CheckpointWriter, "begin", self._saving(CheckpointWriter.begin)).start()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED:
            self._note(_AUDITED[event], arguments[0])

    def _noting(self, kind: str, function: Any) -> Any:
        def noted(path: Any, *arguments: Any, **named: Any) -> Any:
            self._note(kind, path)
            return function(path, *arguments, **named)

        return noted

    def _saving(self, begin: Any) -> Any:
        def saved(writer: CheckpointWriter, *arguments: Any) -> None:
            before, self.phase = self.phase, f"{self.phase} saving"
            try:
                begin(writer, *arguments)
                writer.finish()  # what the thread asks is of this phase too
            finally:
                self.phase = before

        return saved

    def _note(self, kind: str, path: Any) -> None:
        word = f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path or ".")
        if found := _DESCRIPTOR.match(word):
            try:
                word = os.readlink(found[0]) + word[found.end() :]
            except OSError:  # it is closed
                return
        place = os.path.relpath(os.path.abspath(word), self._folder)
        if not place.startswith(".."):
            self.made.setdefault(self.phase, []).append(f"{kind} {place}")


def asked(folder: str, words: list[str]) -> dict[str, list[str]]:
    """What this rank asks of ``folder``: ``begun`` of a run of one step, ``resumed`` for another, each ``saving``."""
    torch.set_num_threads(1)
    pretraining.measured_peak_flops = lambda *_: 1e11
    requests = Requests(folder)
    with distributed() as world:
        for steps, phase in enumerate(("begun", "resumed"), start=1):
            requests.phase = phase
            config, config_yaml = parse_config(PretrainConfig, "test", [*words, f"train.steps={steps}"])
            with _held(config, world):
                assert pretraining.pretrain(config, config_yaml, world)
            world.barrier()
    return requests.made


def agreements(folder: str) -> dict[str, Any]:
    """What this rank is told in ``tests/engine/test_many_ranks.py``."""
    with distributed() as world:
        return {"error": _error(world), "teachers": _teachers(world, Path(folder)), "stop": _stop(world)}


def _error(world: World) -> str:
    """What a rank sees of an error on rank 0."""

    def find() -> None:
        raise FileNotFoundError(2, "there is none", "a file")

    try:
        world.from_main(find)
    except FileNotFoundError as error:
        return str(error)
    return ""


def _teachers(world: World, folder: Path) -> list[str]:
    """Hashes of a run's teacher at its beginning and resumed; ranks other than 0 see stale, empty folders."""
    mask, fbank = MaskConfig(0.5, 0.5), FbankConfig(target_length=64, num_mel_bins=32)
    first, run = folder / "first.safetensors", folder / "run"
    if world.is_main:
        run.mkdir()
        model = small_mavil(mask=mask)
        save_described(first, model.state_dict(), Description(model.config, fbank))
    found = []
    stale = patch.multiple(Path, glob=lambda *_: iter(()), exists=lambda *_: False)
    for resumed in (False, True):
        world.barrier()
        settings = MavilSelfTrainingConfig(teacher=str(first))
        objective = MavilSelfTraining(small_mavil(mask=mask), fbank, settings)
        with nullcontext() if world.is_main else stale:
            objective.keep_in(run, resumed, world)
        found.append(bytes(objective.teacher_sha256.tolist()).hex())
    return found


def _stop(world: World) -> dict[str, int]:
    """The step after which all ranks stop, and the votes, where the last rank is asked to in step 52.

    By their clocks a step takes 1/64 s on rank 0 and 1/32 s on rank 1.
    """
    votes, reduce, now = 0, dist.all_reduce, 0.0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal votes
        votes += 1
        return reduce(*arguments, **named)

    request = stop.StopRequest(world, period=0.25)
    clock = SimpleNamespace(monotonic=lambda: now)
    with patch.object(dist, "all_reduce", counted), patch.object(stop, "time", clock):
        for step in count(1):
            now += (world.rank + 1) / 64
            if step == 52 and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if request.agreed():
                request.close()
                return {"step": step, "votes": votes}
    raise AssertionError
