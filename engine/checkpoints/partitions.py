"""Adam's state of ZeRO 1 and 2 for a world of any size: each rank reads what is its own, from the files that have it.

ZeRO lays the parameters of an optimizer's group one behind the other and gives each rank a stretch of equal length, the
last ones filled up with zeros. A rank of another world has a stretch that begins and ends elsewhere, within one or
several of those that were written. Nothing is converted or gathered, on disk or between the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.weights.unpickle import load_tensors

#: Adam's state of the groups, by their number.
Groups = dict[int, dict[str, Tensor]]


class Stretch(NamedTuple):
    """What a rank has of a group.

    Attributes:
        numbers: In the group, of all ranks.
        length: Of a rank's stretch, with what fills it up.
    """

    numbers: int
    length: int


def read_adam(
    folder: Path, written_by: int, stretches: Sequence[Stretch], rank: int, world_size: int
) -> Groups:
    """Adam's state of a rank's stretches.

    Args:
        folder: With DeepSpeed's files of all ranks that wrote it.
        written_by: Their number.
        stretches: By the group's number, today's.
        rank: Today's.
        world_size: Today's.

    Returns:
        By the group's number, empty where the group had taken no step: counts of steps as they are, and moments of the
        stretch's length.

    Raises:
        WeightsError: A file is damaged, or holds more than tensors; nothing of it was run.
        Exception: It is of another optimizer: a lookup, a type, a size or a place that does not fit.
    """

    @cache
    def written(part: int) -> Groups:
        path = folder / f"zero_pp_rank_{part}_mp_rank_00_optim_states.pt"
        return load_tensors(path, lazy=True)["optimizer_state_dict"]["base_optimizer_state"]["state"]

    found: Groups = {}
    for number, (numbers, length) in enumerate(stretches):
        # One of the files, about where this rank's stretch begins, tells what there is, and how long stretches were.
        some = written(rank * written_by // world_size).get(number, {})
        begin, end = rank * length, min((rank + 1) * length, numbers)
        found[number] = {}
        for name, value in some.items():
            if not value.ndim:
                found[number][name] = value.clone()
                continue
            own, earlier = torch.zeros(length), value.numel()
            for part in range(begin // earlier, -(-end // earlier)) if begin < end else ():
                first, last = max(begin, part * earlier), min(end, (part + 1) * earlier)
                stored = written(part)[number][name][first - part * earlier : last - part * earlier]
                own[first - begin : last - begin] = stored
            found[number][name] = own
    return found


def load_adam(zero_optimizer: Any, groups: Groups) -> None:
    """Gives DeepSpeed's optimizer of ZeRO 1 or 2 the state of its stretches; the settings of its groups stay."""
    inner = zero_optimizer.optimizer
    inner.load_state_dict({"state": groups, "param_groups": inner.state_dict()["param_groups"]})
    zero_optimizer._link_all_hp_params()


def stretches(zero_optimizer: Any) -> list[Stretch]:
    """What this rank has of each group of DeepSpeed's optimizer of ZeRO 1 or 2."""
    return [
        Stretch(sum(parameter.numel() for parameter in parameters), own.numel())
        for parameters, own in zip(
            zero_optimizer.bit16_groups, zero_optimizer.single_partition_of_fp32_groups, strict=True
        )
    ]
