"""The towers of a config: small ones, or those in a folder."""

from __future__ import annotations

from pathlib import Path

from models.dense.config import DenseModelConfig
from models.towers import AudioTower, VisualTower
from models.towers.conv import ConvAudioTower, ConvVisualTower
from models.towers.folders import PictureTower, WaveTower


def build_audio_tower(config: DenseModelConfig) -> AudioTower:
    """The tower for sound.

    Raises:
        ValueError: The source holds none.
    """
    setting = config.audio
    if setting.source is None:
        _check_small(config, "audio")
        return ConvAudioTower(setting.width, setting.depth, config.num_mel_bins)
    return WaveTower.open(Path(setting.source))


def build_visual_tower(config: DenseModelConfig) -> VisualTower:
    """The tower for pictures.

    Raises:
        ValueError: The source holds none, or its patches don't fit the pictures.
    """
    setting = config.visual
    if setting.source is None:
        _check_small(config, "visual")
        return ConvVisualTower(setting.width, setting.depth)
    tower = PictureTower.open(Path(setting.source))
    tower.check_size(config.image_size)
    return tower


def _check_small(config: DenseModelConfig, modality: str) -> None:
    """Raises ``ValueError`` where small towers are not what the preset is about."""
    if config.name != "dense_tiny":
        raise ValueError(
            f"model.name {config.name} needs model.{modality}.source, a folder; small random towers are dense_tiny's"
        )
