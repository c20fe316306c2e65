"""A backend for torch.compile that counts what it is given, and a training that goes through it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.training import make_batch, make_trainer, small_objective

import engine.training.trainer as trainer_module
from engine.parallel.deepspeed_engine import ParallelConfig
from engine.parallel.world import distributed
from engine.records.runlog import read_metrics
from engine.training.train_config import TrainConfig
from models.layers.blocks import compile_blocks


class Counting:
    """Notes every graph, and hands it to another backend.

    Attributes:
        graphs: How many were compiled.
        symbolic: How many of them have a size that is not a number.
    """

    def __init__(self, backend: str = "eager") -> None:
        self.graphs, self.symbolic = 0, 0
        self._compile = torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.graphs += 1
        values = [node.meta.get("example_value") for node in graph.graph.nodes if node.op == "placeholder"]
        sizes = [size for value in values if isinstance(value, torch.Tensor) for size in value.shape]
        self.symbolic += any(isinstance(value, torch.SymInt) for value in [*values, *sizes, *inputs])
        return self._compile(graph, inputs)


def compiled_run(run: str) -> dict[str, Any]:
    """Losses of a training that is compiled, and of one that is not, with an evaluation before and between steps."""

    def evaluate(objective: Any, step: int, log: Any) -> dict[str, float]:
        objective.pictures(make_batch([0, 1]))
        objective.embed(make_batch([0, 1, 2]))
        seen.append(backend.graphs)
        return {"val/score": 0.0}

    losses, seen = [], []
    backend = Counting("aot_eager")
    with (
        distributed() as world,
        patch.object(trainer_module, "compile_blocks", partial(compile_blocks, backend=backend)),
    ):
        for compiled in (True, False):
            parallel = ParallelConfig(global_batch_size=8, precision="fp32", compile=compiled)
            train = TrainConfig(
                steps=4, log_interval=1, eval_interval=2, checkpoint_interval=4, parallel=parallel
            )
            folder = Path(run, str(compiled))
            assert make_trainer(world, folder, train, objective=small_objective(), evaluate=evaluate).fit()
            losses.append([r["train/loss"] for r in read_metrics(folder) if "train/loss" in r])
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return {
        "losses": losses,
        "seen": seen,
        "graphs": backend.graphs,
        "symbolic": backend.symbolic,
        "breaks": breaks,
    }
