"""Towers: whatever turns sounds, pictures or texts into tokens, small fresh ones or trained ones from local folders."""

from models.towers.base import AudioTower, Sound, TextTower, Tokens, Tower, VisualTower, Words

__all__ = ["AudioTower", "Sound", "TextTower", "Tokens", "Tower", "VisualTower", "Words"]
