"""The mean of the weights over epochs, made again alike after going back."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from engine.training.weight_average import AveragingConfig, WeightAverage

STEPS_PER_EPOCH = 2.5  # epochs end with steps 2, 5, 7, 10, 12


def weights(step: int) -> nn.Linear:
    torch.manual_seed(step)
    return nn.Linear(3, 2)


def average(run: Path, first: int, last: int | None, steps: range) -> WeightAverage:
    mean = WeightAverage(AveragingConfig(first, last), run, STEPS_PER_EPOCH)
    for step in steps:
        if mean.due(step):
            mean.update(weights(step), step)
    return mean


@pytest.mark.parametrize(
    ("first", "last", "ends"), [(2, 4, (5, 7, 10)), (1, None, (2, 5, 7, 10, 12)), (4, 4, (10,))]
)
def test_mean_over_the_epochs_wanted(tmp_path: Path, first: int, last: int | None, ends: tuple[int, ...]):
    mean = average(tmp_path, first, last, range(1, 13))
    assert [step for step in range(1, 13) if mean.due(step)] == list(ends)
    path = mean.at(12)
    assert path is not None
    expected = torch.stack([weights(step).weight for step in ends]).mean(0)
    torch.testing.assert_close(safetensors.torch.load_file(path)["weight"], expected)


def test_going_back_makes_the_same_mean_again(tmp_path: Path):
    whole = average(tmp_path / "whole", 1, None, range(1, 13)).at(12)
    average(tmp_path / "again", 1, None, range(1, 11))
    again = average(tmp_path / "again", 1, None, range(6, 13)).at(12)
    assert whole is not None
    assert again is not None
    assert whole.read_bytes() == again.read_bytes()


def test_means_of_a_killed_attempt_are_not_taken_for_later_ones(tmp_path: Path):
    mean = average(tmp_path, 1, None, range(1, 13))
    at_seven = mean.at(7)
    assert at_seven is not None
    assert at_seven.name == "epoch_0003.safetensors"
    mean.discard_after(7)
    assert mean.at(12) == at_seven
    shorter = WeightAverage(AveragingConfig(1, 2), tmp_path, STEPS_PER_EPOCH).at(12)
    assert shorter is not None
    assert shorter.name == "epoch_0002.safetensors"


def test_a_mean_is_of_the_epochs_that_are_wanted_now(tmp_path: Path):
    average(tmp_path, 1, None, range(1, 8))
    with pytest.raises(
        ValueError,
        match=r"first_epoch is 2, but the mean in .* begins with epoch '1' in first_epoch.txt; set it back, to 4",
    ):
        WeightAverage(AveragingConfig(2), tmp_path, STEPS_PER_EPOCH).check(7, 12)
    (tmp_path / "average" / "first_epoch.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"begins with epoch '.' in first_epoch.txt"):
        WeightAverage(AveragingConfig(1), tmp_path, STEPS_PER_EPOCH).check(7, 12)


def test_a_damaged_mean_is_named(tmp_path: Path):
    mean = average(tmp_path, 1, None, range(1, 8))
    (tmp_path / "average" / "epoch_0003.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"epoch_0003\.safetensors is damaged .* set averaging.first_epoch to 4"
    ):
        mean.check(7, 12)


def test_what_can_not_be_averaged(tmp_path: Path):
    mean = average(tmp_path, 2, 3, range(1, 8))
    mean.check(0, 12)
    mean.check(7, 12)
    mean.check(12, 12)
    with pytest.raises(ValueError, match=r"first_epoch is 2, but the run ends with step 4, after 1.6 epochs"):
        mean.check(0, 4)
    late = average(tmp_path / "late", 2, None, range(0))
    late.check(4, 12)
    with pytest.raises(ValueError, match=r"no mean .* up to epoch 3 .*; set it to 4 or later"):
        late.check(7, 12)


def test_nothing_is_averaged_before_the_first_epoch(tmp_path: Path):
    assert average(tmp_path, 3, None, range(1, 7)).at(7) is None
    with pytest.raises(ValueError, match=r"averaging.last_epoch is 2: it comes before averaging.first_epoch"):
        AveragingConfig(3, 2)
    with pytest.raises(ValueError, match="epochs count from 1"):
        AveragingConfig(0)
