"""The recipes in ``configs/``: which one a run follows, what differs, and what their cards expect of a run."""
