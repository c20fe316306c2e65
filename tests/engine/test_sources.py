"""Whatever goes wrong with one file is the failure of its clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasets.batch import ReadFailure, Ticket
from datasets.loading.config import ClipNeeds
from engine.inference.sources import Listing, MediaFiles, Piece


@pytest.mark.parametrize("error", [MemoryError, ValueError, OverflowError, OSError])
def test_one_file_ends_nothing(tmp_path: Path, error: type[Exception]) -> None:
    files = MediaFiles(Listing(tmp_path, "sound", ["a.wav"]), [Piece("a.wav", 2.0, 4.0)], ClipNeeds())

    def failing(*_: Any) -> Any:
        raise error("no room")

    files._guarded = failing  # type: ignore[assignment]
    found = files[Ticket(0, 0)]
    assert isinstance(found, ReadFailure)
    assert (found.id, found.reason) == ("a.wav", "at 2.000 s: no room")
