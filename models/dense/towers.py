"""The towers of a config: small ones, or those of a source."""

from __future__ import annotations

from pathlib import Path

from models.dense.config import DenseModelConfig
from models.towers import AudioTower, VisualTower
from models.towers.conv import ConvAudioTower, ConvVisualTower
from models.towers.earsight import EncoderVisualTower
from models.towers.folders import PICTURE, PictureTower
from models.towers.lora import add_lora
from models.towers.sources import checked_folder, model_type, open_audio_tower


def build_audio_tower(config: DenseModelConfig) -> AudioTower:
    """The tower for sound.

    Raises:
        ValueError: The source holds none.
    """
    setting = config.audio
    if setting.source is None:
        _check_small(config, "audio")
        return ConvAudioTower(setting.width, setting.depth, config.num_mel_bins)
    tower = open_audio_tower(Path(setting.source))
    add_lora(tower, setting.lora, "model.audio.lora")
    return tower


def build_visual_tower(config: DenseModelConfig) -> VisualTower:
    """The tower for pictures.

    Raises:
        ValueError: The source holds none, or none for single pictures of this size.
    """
    setting = config.visual
    if setting.source is None:
        _check_small(config, "visual")
        return ConvVisualTower(setting.width, setting.depth)
    source = Path(setting.source)
    if model_type(source) is not None:
        tower: VisualTower = PictureTower.open(checked_folder(source, PICTURE, "visual"))
    else:
        tower = _encoder(source)
    tower.check_size(config.image_size)
    add_lora(tower, setting.lora, "model.visual.lora")
    return tower


def _encoder(source: Path) -> EncoderVisualTower:
    """Our own encoder, if it takes single pictures."""
    tower: EncoderVisualTower = EncoderVisualTower.open(source)
    if tower.num_frames != 1:
        raise ValueError(
            f"model.visual.source {source} takes {tower.num_frames} frames together; heat is that of single pictures"
        )
    return tower


def _check_small(config: DenseModelConfig, modality: str) -> None:
    """Raises ``ValueError`` where small towers are not what the preset is about."""
    if config.name != "dense_tiny":
        raise ValueError(
            f"model.name {config.name} needs model.{modality}.source; small random towers are dense_tiny's"
        )
