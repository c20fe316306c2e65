"""Vectors of every clip: ``python -m engine.embed``."""
