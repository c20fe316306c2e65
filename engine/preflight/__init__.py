"""Checks before a run is submitted."""
