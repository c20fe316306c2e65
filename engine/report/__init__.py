"""One page that shows a run: ``python -m engine.report RUN… OUT.html``."""
