"""What tests of several files need and is not cheap to make; none of them changes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.films import config, write_films

from datasets.prepare.run import prepare


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="session")
def prepared_films(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one uninterrupted run makes of the films, their folders as classes."""
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(config(films, out, folders_as_classes=True))
    return out
