"""Runs side by side: ``python -m engine.compare RUN… [--cards] [--page OUT.html]``."""
