"""The short form of ``make fuzz``: some damaged files of every format end in a success or an error of that format."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.mutations import formats, mutated


def test_damage_ends_in_a_success_or_a_named_error(tmp_path: Path) -> None:
    for name, chosen in formats(tmp_path):
        chosen.read(chosen.seeds[0])
        for number in range(12):
            try:
                chosen.read(mutated(chosen.seeds[0], number))
            except chosen.errors:
                continue
            except Exception as error:
                pytest.fail(f"{name}, damage {number}: {type(error).__name__}: {error}")
