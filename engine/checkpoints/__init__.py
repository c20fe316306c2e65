"""Checkpoints: their folders, how they are written, kept and loaded, and what says that they are whole."""
