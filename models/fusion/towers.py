"""The towers of a config: small ones, those of a source, or those of a run whose sources may be gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atomic import write_atomically
from models.frontend import FbankConfig
from models.fusion.config import FusionModelConfig
from models.towers import AudioTower, TextTower, Tower, VisualTower
from models.towers.conv import STRIDE, ConvAudioTower, ConvVisualTower
from models.towers.earsight import EncoderAudioTower, EncoderVisualTower
from models.towers.film import FILM, FilmTower, R3dTower
from models.towers.folders import PICTURE, PictureTower, WaveTower, read_settings
from models.towers.sources import check_sound, checked_folder, model_type, open_audio_tower
from models.towers.text import TEXT, ByteTower, FolderTextTower

#: In a kept folder: which class of tower it is of.
_KIND = "tower.json"
#: Frames of a clip where neither the config nor the tower says how many: films need several.
_FILM_FRAMES = 16


def build_towers(
    config: FusionModelConfig, fbank: FbankConfig, kept: Mapping[str, Path] | None = None
) -> dict[str, Tower[Any]]:
    """The towers by modality, in the usual order.

    Args:
        config: The model's.
        fbank: The spectrograms that are made.
        kept: From `kept_towers`; their sources are not read, and their weights are to be loaded later.

    Raises:
        ValueError: A source is missing, is of another modality, or takes other input.
    """
    towers: dict[str, Tower[Any]] = {}
    for name in config.present:
        towers[name] = _BUILD[name](config, (kept or {}).get(name))
        if config.tower(name).frozen:
            towers[name].requires_grad_(False)
    check_sound(towers.get("audio"), fbank)
    visual = towers.get("visual")
    if isinstance(visual, VisualTower):
        visual.check_size(config.image_size)
        num_frames(config, visual)
    return towers


def keep_towers(towers: Mapping[str, Tower[Any]], folder: Path) -> None:
    """Writes what `build_towers` needs beside the weights."""
    for name, tower in towers.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        tower.keep(place)
        write_atomically(place / _KIND, json.dumps({"tower": type(tower).__name__}) + "\n")


def kept_towers(folder: Path) -> dict[str, Path]:
    """By modality, where `keep_towers` has written into a folder; nothing where it has not."""
    return {name: folder / name for name in _BUILD if (folder / name).is_dir()}


def num_frames(config: FusionModelConfig, tower: VisualTower) -> int:
    """Frames of a clip that are given to the tower.

    Raises:
        ValueError: The config wants another number than it takes.
    """
    wanted, taken = config.visual.frames, tower.num_frames
    if wanted is not None and taken is not None and wanted != taken:
        raise ValueError(
            f"model.visual.frames is {wanted}, and the model in model.visual.source takes {taken}: leave frames out"
        )
    return wanted or taken or (_FILM_FRAMES if isinstance(tower, R3dTower) else 1)


def _audio(config: FusionModelConfig, kept: Path | None) -> AudioTower:
    setting = config.audio
    if setting.source is None:
        if config.num_mel_bins % STRIDE:
            raise ValueError(f"model.num_mel_bins {config.num_mel_bins} must be a multiple of {STRIDE}")
        return ConvAudioTower(setting.width, setting.depth, config.num_mel_bins)
    if kept is not None:
        return (
            EncoderAudioTower.kept(kept)
            if _is(kept, EncoderAudioTower)
            else WaveTower.open(kept, weights=False)
        )
    return open_audio_tower(Path(setting.source))


def _visual(config: FusionModelConfig, kept: Path | None) -> VisualTower:
    setting = config.visual
    if setting.source is None:
        return ConvVisualTower(setting.width, setting.depth)
    if kept is not None and _is(kept, R3dTower):
        return R3dTower()
    if kept is not None and _is(kept, EncoderVisualTower):
        return EncoderVisualTower.kept(kept)
    source = kept or Path(setting.source)
    kind = model_type(source)
    if kind is not None:
        checked_folder(source, PICTURE + FILM, "visual")
        return (FilmTower if kind in FILM else PictureTower).open(source, weights=kept is None)
    if R3dTower.recognises(source):
        return R3dTower.open(source)
    return EncoderVisualTower.open(source)


def _text(config: FusionModelConfig, kept: Path | None) -> TextTower:
    setting = config.text
    if setting.source is None:
        return ByteTower(setting.width, setting.depth, setting.max_length)
    source = kept or checked_folder(Path(setting.source), TEXT, "text")
    return FolderTextTower.open(source, setting.max_length, weights=kept is None)


_BUILD: dict[str, Callable[[FusionModelConfig, Path | None], Tower[Any]]] = {
    "audio": _audio,
    "visual": _visual,
    "text": _text,
}


def _is(kept: Path, kind: type) -> bool:
    return read_settings(kept / _KIND).get("tower") == kind.__name__
