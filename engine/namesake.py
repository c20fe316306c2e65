"""``datasets`` is also the name of a Hugging Face package: makes sure that ours is the one imported."""

from __future__ import annotations

from pathlib import Path


def check_datasets() -> None:
    """Ends the program with an explanation where ``import datasets`` finds another package."""
    import datasets

    found = Path(datasets.__file__ or "").resolve().parent
    expected = Path(__file__).resolve().parents[1] / "datasets"
    if found != expected:
        raise SystemExit(
            f"'import datasets' found {found} instead of {expected}: another package of that name comes first. "
            "Run from Earsight's own folder, or uninstall the other package in this environment"
        )
