"""Adam's state that one world has written, read by another: every number is where it belongs."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from support.processes import run_ranks
from torch import Tensor

from engine.checkpoints.partitions import Groups, Stretch, read_adam
from models.weights.errors import WeightsError

#: Numbers in each group: of many, of one and of fewer than there are ranks.
GROUPS = (1003, 1, 5)


def stretch(numbers: int, world_size: int) -> Stretch:
    """DeepSpeed makes a group a multiple of twice the number of ranks."""
    unit = 2 * world_size
    return Stretch(numbers, -(-numbers // unit) * unit // world_size)


def values(number: int, name: str) -> Tensor:
    return torch.arange(1.0, GROUPS[number] + 1) * (-1 if name == "exp_avg" else 1) + 0.25 * number


def write(folder: Path, world_size: int, stepped: bool = True) -> None:
    folder.mkdir()
    for rank in range(world_size):
        state: Groups = {}
        for number, numbers in enumerate(GROUPS if stepped else ()):
            length = stretch(numbers, world_size).length
            state[number] = {"step": torch.tensor(7.0)}
            for name in ("exp_avg", "exp_avg_sq"):
                filled = torch.zeros(length * world_size)
                filled[:numbers] = values(number, name)
                state[number][name] = filled[rank * length : (rank + 1) * length].clone()
        kept = {"optimizer_state_dict": {"base_optimizer_state": {"state": state, "param_groups": []}}}
        torch.save(kept, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


@pytest.mark.parametrize(
    ("before", "after"), [*product((1, 2, 3, 8), (1, 2, 3, 5, 8, 16)), (2, 512), (512, 3)]
)
def test_every_number_is_where_it_belongs(tmp_path: Path, before: int, after: int) -> None:
    write(tmp_path / "files", before)
    own = [stretch(numbers, after) for numbers in GROUPS]
    ranks = [read_adam(tmp_path / "files", before, own, rank, after) for rank in range(after)]
    for number, numbers in enumerate(GROUPS):
        assert all(rank[number]["step"] == 7 for rank in ranks)
        for name in ("exp_avg", "exp_avg_sq"):
            assert all(rank[number][name].shape == (own[number].length,) for rank in ranks)
            joined = torch.cat([rank[number][name] for rank in ranks])
            assert torch.equal(joined[:numbers], values(number, name))
            assert not joined[numbers:].any()


def test_a_rank_reads_no_other_file_than_it_needs(tmp_path: Path) -> None:
    write(tmp_path / "files", 8)
    own = [stretch(1003, 2)]
    for part in range(3):  # of 126 numbers each, and the second of two ranks begins with the 503rd
        (tmp_path / "files" / f"zero_pp_rank_{part}_mp_rank_00_optim_states.pt").unlink()
    assert read_adam(tmp_path / "files", 8, own, 1, 2)[0]["exp_avg"][0] == -(own[0].length + 1)
    with pytest.raises(WeightsError, match="zero_pp_rank_0_"):
        read_adam(tmp_path / "files", 8, own, 0, 2)


def test_before_the_first_step_there_is_none(tmp_path: Path) -> None:
    write(tmp_path / "files", 2, stepped=False)
    assert read_adam(tmp_path / "files", 2, [stretch(1003, 3)], 2, 3) == {0: {}}


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_deepspeed_of_512_ranks(tmp_path: Path, zero_stage: int) -> None:
    """The first rank, one that has numbers in most groups, and the last, which has none at all."""
    size, ranks = 512, [0, 255, 511]
    found = run_ranks(
        "support.fake_world:one_step", 3, size=size, ranks=ranks, zero_stage=zero_stage, folder=str(tmp_path)
    )
    owned = []
    for rank, steps in zip(ranks, found, strict=True):
        for group, found_stretch in enumerate(steps["stretches"]):
            stepped, expected = steps["numbers"][group], steps["expected_numbers"][group]
            own = stretch(len(stepped), size)
            assert found_stretch == own
            part = slice(rank * own.length, (rank + 1) * own.length)
            assert torch.equal(stepped[part], expected[part])
            owned.append(len(expected[part]))
            moments, expected = steps["moments"][group], steps["expected_moments"][group][part]
            assert torch.equal(moments[: len(expected)], expected)
            assert not moments[len(expected) :].any()
            assert torch.equal(steps["read_moments"][group], moments)
    # Groups of one number, of some and of many.
    assert owned == [1, 6, 128, 0, 6, 128, 0, 0, 0]
