"""Float32 weights of DeepSpeed's ZeRO 1 and 2, out of the partitions of its optimizer.

Trained in half precision, ``mp_rank_00_model_states.pt`` holds rounded weights. The float32 ones lie in
``*_optim_states.pt``, one file a rank: for each parameter group a part of one flat vector, in the order of
``param_shapes`` in the model states. (DeepSpeed's own ``zero_to_fp32.py`` merges them too, by unpickling.)
ZeRO 0 keeps them without their names; its weights stay rounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.weights.errors import WeightsError
from models.weights.unpickle import load_tensors

MODEL_STATES = "mp_rank_00_model_states.pt"


def with_float32_weights(path: Path, states: Any) -> Any:
    """DeepSpeed's model states with weights in float32, where these are needed and lie beside them.

    Args:
        path: The file of the model states.
        states: What it holds.

    Returns:
        The same where nothing is rounded, or there are no partitions.

    Raises:
        WeightsError: Partitions are missing, or they are not of these model states.
    """
    module = states.get("module") if isinstance(states, Mapping) else None
    if not isinstance(module, Mapping) or not isinstance(states.get("param_shapes"), list):
        return states
    files = sorted(path.parent.glob("*_mp_rank_00_optim_states.pt"), key=_rank)
    if not files or all(not isinstance(v, Tensor) or v.dtype == torch.float32 for v in module.values()):
        return states
    try:
        found = dict(_weights(files, states["param_shapes"]))
    except WeightsError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, f"they can't be merged ({error})") from error
    for name, value in found.items():
        if name not in module or not torch.equal(value.to(module[name].dtype), module[name]):
            raise _damaged(path, f"{name} is another there")
    return {**states, "module": {**module, **found}}


def _weights(files: list[Path], groups: list[Mapping[str, torch.Size]]) -> Iterator[tuple[str, Tensor]]:
    """Names and float32 weights, from the partitions of all ranks in order."""
    ranks = [load_tensors(file, lazy=True)["optimizer_state_dict"] for file in files]
    counts = ranks[0]["partition_count"]
    expected = max(counts) if isinstance(counts, list) else counts
    if len(ranks) != expected:
        raise WeightsError(
            f"{files[0].parent} has {len(ranks)} files *_optim_states.pt and was written by {expected} ranks: "
            f"copy the missing ones, or give {MODEL_STATES} in a folder without any, whose weights are rounded"
        )
    paddings = ranks[0].get("param_alignment_paddings")
    for number, shapes in enumerate(groups):
        flat = torch.cat([rank["single_partition_of_fp32_groups"][number] for rank in ranks])
        start = 0
        for place, (name, shape) in enumerate(shapes.items()):
            yield name, flat[start : start + shape.numel()].view(shape).clone()
            start += shape.numel() + (paddings[number][place] if paddings else 0)


def _rank(path: Path) -> int:
    match = re.search(r"zero_pp_rank_(\d+)_", path.name)
    return int(match.group(1)) if match else 0


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path.parent}: the float32 weights in *_optim_states.pt are not those of {path.name}: {what}; give "
        f"{path.name} in a folder without them to take its rounded weights"
    )
