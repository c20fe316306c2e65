"""Training through torch.compile: whole graphs of fixed sizes, and nothing else compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compiling import Counting
from support.objectives import TINY, tiny_batch, tiny_objective
from support.processes import run_ranks

from models.layers.blocks import Block, JointBlock, compile_blocks


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's compiler looks at each tensor's
@pytest.mark.parametrize("kind", sorted(TINY))
def test_blocks_are_whole_graphs_of_fixed_sizes(kind: str) -> None:
    """Whatever an evaluation before training and between its steps has computed."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    objective, eager = tiny_objective(kind), tiny_objective(kind)
    backend = Counting()
    compile_blocks(objective.model, backend)
    batch, counts = tiny_batch(objective, [0, 1, 2, 3]), []
    for _ in range(2):
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            objective.eval().embed(tiny_batch(objective, [0, 1, 2]))
            objective.pictures(tiny_batch(objective, [0, 1]))
        objective.train()
        counts.append(backend.graphs)
        values, expected = objective(batch), eager(batch)
        torch.testing.assert_close(values["loss"], expected["loss"])
        values["loss"].backward()
    assert counts[0] == 0
    # One for each shape of a block: Block in towers and decoder, JointBlock; none where a model has no blocks.
    assert counts[1] == backend.graphs <= 5
    has_blocks = any(isinstance(module, Block | JointBlock) for module in objective.model.modules())
    assert bool(backend.graphs) == has_blocks
    assert backend.symbolic == 0
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_training_takes_the_steps_of_one_that_is_not(tmp_path: Path) -> None:
    (found,) = run_ranks("support.compiling:compiled_run", 1, run=str(tmp_path))
    compiled, eager = found["losses"]
    assert compiled == pytest.approx(eager, rel=1e-6)
    # Before the first step none, then Block in tower and decoder and JointBlock, and nothing in evaluations.
    assert found["seen"] == [0, 3, 3, 3, 3, 3]
    assert (found["graphs"], found["symbolic"], found["breaks"]) == (3, 0, 0)
