"""Random numbers of a sample: the same everywhere, and random."""

import pytest
import torch

from models import Stream, uniform, uniforms

N = 4096


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].abs().item()


def splitmix64(state: int, n: int) -> int:
    """The n-th output (from 1) of the public-domain reference implementation."""
    mask = (1 << 64) - 1
    z = (state + n * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567, 2**63 - 1])
def test_values_are_those_of_splitmix64(seed):
    key = splitmix64((splitmix64(seed, 1) + 3 - 0x9E3779B97F4A7C15) % 2**64, 1)
    expected = [(splitmix64(key, n) >> 40) / 2**24 for n in range(1, 9)]
    assert uniform(torch.tensor([seed]), 3, (8,))[0].tolist() == expected


def test_values_do_not_depend_on_the_batch_or_the_shape():
    seeds = torch.tensor([5, 2**62, 0, 17])
    together = uniform(seeds, 1, (6, 4))
    assert together.shape == (4, 6, 4)
    assert together.dtype == torch.float32
    assert torch.equal(uniform(seeds[2:3], 1, (24,)).reshape(6, 4), together[2])
    assert torch.equal(uniform(seeds, 1, (3,)), together.flatten(1)[:, :3])
    assert torch.equal(uniform(seeds, 1), together[:, 0, 0])


def test_values_are_uniform():
    x = uniform(torch.arange(256), Stream.MASK_AUDIO, (N,))
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean().item() - 1 / 2) < 5 / (12 * x.numel()) ** 0.5
    assert abs(x.var().item() - 1 / 12) < 5 / (180 * x.numel()) ** 0.5
    counts = torch.histc(x, bins=64, min=0, max=1)
    chi_squared = ((counts - x.numel() / 64) ** 2 / (x.numel() / 64)).sum()
    assert chi_squared < 63 + 5 * (2 * 63) ** 0.5


def test_streams_seeds_and_neighbours_are_uncorrelated():
    seeds = torch.arange(64)
    x = uniform(seeds, 1, (N,))
    limit = 5 / (64 * N) ** 0.5
    for stream in (2, 3, 4):
        assert correlation(x, uniform(seeds, stream, (N,))) < limit
    assert correlation(x, uniform(seeds + 64, 1, (N,))) < limit
    for lag in (1, 2, 7, 64):
        assert correlation(x[:, lag:], x[:, :-lag]) < limit * 1.1
    for lag in (1, 2, 8):
        assert correlation(x[lag:], x[:-lag]) < limit * 1.1


def test_first_values_of_neighbouring_seeds_are_uncorrelated():
    x = uniform(torch.arange(2**16), Stream.FBANK_ROLL)
    for lag in (1, 2, 256):
        assert correlation(x[lag:], x[:-lag]) < 5 / 2**8
    assert abs(x.mean().item() - 1 / 2) < 5 / (12 * 2**16) ** 0.5


def test_streams_are_distinct():
    assert len(set(Stream)) == len(Stream.__members__)


def test_several_streams_at_once_are_those_one_by_one():
    seeds = torch.tensor([1, -7, 2**62])
    draws = [(3, (4, 5)), (260, ()), (9, (1, 1))]
    for together, (stream, shape) in zip(uniforms(seeds, draws), draws, strict=True):
        assert torch.equal(together, uniform(seeds, stream, shape))
