"""Position tables against the published formula, written naively."""

import math

import pytest
import torch

from models.layers.position import sincos_2d


def naive(width: int, rows: int, columns: int) -> torch.Tensor:
    table = torch.zeros(rows * columns, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for half, position in enumerate((column, row)):
                for i in range(quarter):
                    angle = position / 10000 ** (i / quarter)
                    table[row * columns + column, half * 2 * quarter + i] = math.sin(angle)
                    table[row * columns + column, (half * 2 + 1) * quarter + i] = math.cos(angle)
    return table.float()


@pytest.mark.parametrize(("width", "grid"), [(16, (8, 4)), (64, (8, 64)), (768, (14, 14))])
def test_table_equals_the_formula(width, grid):
    torch.testing.assert_close(sincos_2d(width, grid), naive(width, *grid), atol=1e-6, rtol=0)


def test_width_must_divide_by_four():
    with pytest.raises(ValueError, match="6"):
        sincos_2d(6, (2, 2))
