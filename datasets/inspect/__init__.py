"""Clips of a set, to be looked at."""
