"""A run's folder that others made is resumed as data: what is hidden in it is refused, and never run."""

from __future__ import annotations

from pathlib import Path

from support.hostile import SHORT
from support.processes import run_ranks


def test_what_is_hidden_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    runs = [{"run": str(tmp_path / f"zero{stage}"), "zero_stage": stage, **SHORT} for stage in (0, 1)]
    run_ranks("support.training:fits", 2, runs=runs)
    [outcomes] = run_ranks("support.hostile:resume_spoilt_runs", 1, folder=str(tmp_path))
    assert not (tmp_path / "ran").exists()
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(outcomes.pop("listening").split()) <= loopback  # a run of one process has no one to listen for
    # A conversion that the folder brought along is not used: the run resumes from the state itself.
    assert outcomes.pop("planted") == "resumed to step 3"
    for path in (tmp_path / "planted" / "checkpoints").iterdir():
        assert not list(path.glob(".converting_*"))
    for name, outcome in outcomes.items():
        assert "is refused" in outcome, (name, outcome)
        assert "Nothing of it was run" in outcome
