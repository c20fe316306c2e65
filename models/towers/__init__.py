"""Towers: whatever turns sounds or pictures into tokens, small fresh ones or trained ones from local folders."""

from models.towers.base import AudioTower, Sound, Tokens, Tower, VisualTower

__all__ = ["AudioTower", "Sound", "Tokens", "Tower", "VisualTower"]
