"""Weights in and out of files: sources, names, initialisation."""
