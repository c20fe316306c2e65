"""What a tower's source holds: a folder that transformers wrote, or else weights of our own; and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.frontend import FbankConfig
from models.towers.base import AudioTower, Tower
from models.towers.earsight import EncoderAudioTower
from models.towers.folders import SOUND, WaveTower, read_settings


def model_type(source: Path) -> str | None:
    """What a folder of transformers says it holds; None for anything else."""
    return read_settings(source / "config.json").get("model_type")


def checked_folder(source: Path, kinds: tuple[str, ...], modality: str) -> Path:
    """The source, a folder of one of these ``model_type``.

    Raises:
        ValueError: It isn't; the setting is named.
    """
    if not source.exists():
        raise ValueError(f"model.{modality}.source {source} does not exist; nothing is downloaded")
    kind = model_type(source)
    if kind not in kinds:
        what = f"holds a {kind} model" if kind else "is no folder that transformers wrote"
        raise ValueError(f"model.{modality}.source {source} {what}; wanted is {' or '.join(kinds)}")
    return source


def open_audio_tower(source: Path) -> AudioTower:
    """The tower for sound of ``model.audio.source``: HuBERT or Wav2Vec2, or an encoder of ours.

    Raises:
        ValueError: It holds none.
    """
    if model_type(source) is not None:
        return WaveTower.open(checked_folder(source, SOUND, "audio"))
    return EncoderAudioTower.open(source)


def check_sound(tower: Tower[Any] | None, fbank: FbankConfig) -> None:
    """Raises ``ValueError``, naming the settings, where a tower was trained on other sound than it will be given."""
    if isinstance(tower, WaveTower) and tower.sample_rate != fbank.sample_rate:
        raise ValueError(
            f"model.audio.source hears {tower.sample_rate} Hz, sound is read at {fbank.sample_rate} Hz: take a model "
            "for that rate"
        )
    if isinstance(tower, EncoderAudioTower):
        names = {"target_length": "model.audio_length", "num_mel_bins": "model.num_mel_bins"}
        different = [
            f"{names.get(key, f'fbank.{key}')}={value}"
            for key, value in vars(tower.fbank).items()
            if value != getattr(fbank, key)
        ]
        if different:
            raise ValueError(
                f"model.audio.source was trained on other spectrograms; give {' '.join(different)} for the same"
            )
