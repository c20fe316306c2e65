"""The vocabulary that a fine-tuning run keeps beside its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from models.weights.errors import WeightsError

#: A list of names in the head's order.
CLASSES = "classes.json"
#: What runs wrote before: a name a line.
_LINES = "classes.txt"
_REMEDY = "restore it, or remove it if the set that the run was trained on still has the same classes"


def kept_classes(run: Path) -> list[str] | None:
    """The classes of a run's head in their order, or None where it keeps none.

    Raises:
        WeightsError: The file is damaged.
    """
    path = run / CLASSES
    if path.is_file():
        try:
            names = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path} is not JSON ({error}); {_REMEDY}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise WeightsError(f"{path} is no list of names; {_REMEDY}")
        return names
    path = run / _LINES
    # Names were ended by "\n" alone: other ends of lines are part of them.
    return path.read_bytes().decode().split("\n")[:-1] if path.is_file() else None
