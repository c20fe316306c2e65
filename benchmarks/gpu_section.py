"""What the sections of `gpu_first.py` share: what they are given, how they say that they can't run, and tables."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.objectives.registry import objective_kind
from engine.parallel.world import World


class NotRunError(Exception):
    """A section makes no sense on this machine; the message says what it needs."""


@dataclass(frozen=True)
class Setup:
    """What is measured, and on what.

    Attributes:
        world: This process, alone.
        objective: Whose steps are measured.
        model: Its preset.
        batch_sizes: Clips a micro-batch; the first one serves where one is enough.
        steps: How many are measured at a time.
        folder: For what is thrown away.
    """

    world: World
    objective: str
    model: str
    batch_sizes: tuple[int, ...]
    steps: int
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.world.device.type == "cuda"

    def need_gpu(self) -> None:
        """Raises `NotRunError` on a CPU."""
        if not self.on_gpu:
            raise NotRunError("needs a GPU")

    def options(self, **changes: object) -> Namespace:
        """The command line of `step.py` that says the same, in bfloat16 at ZeRO 0, with changes."""
        options = Namespace(
            objective=self.objective, model=self.model, batch_size=self.batch_sizes[0], precision="bf16",
            zero_stage=0, overlap_comm=False, compile=False, checkpointing=False, steps=self.steps,
        )  # fmt: skip
        vars(options).update(changes)
        return options


def smallest_model(objective: str) -> str:
    """The tiny preset of the first family that an objective trains."""
    return f"{objective_kind(objective).families[0]}_tiny"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield _line(columns)
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield _line([f"{x:.4g}" if isinstance(x, float) else x for x in row])
    yield ""


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '¦') for cell in cells)} |"
