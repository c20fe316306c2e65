"""Trained weights in forms that others open: ``python -m models.export``."""
