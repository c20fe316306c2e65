"""Other people's backbones as baselines, from local folders through transformers (optional).

Wav2Vec2 and HuBERT for sound, DINOv2 and VideoMAE for frames. They take the same batches as our encoders, so
that the same command embeds with them and the same probes measure them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import AVBatch
from datasets.loading.frames import EvenFrames
from datasets.loading.loader import NUM_SAMPLES
from datasets.loading.reader import FrameChoice, middle_frame
from engine.embed.embedder import Embedder, Vectors
from models.towers import Sound
from models.towers.folders import PICTURE, SOUND, WaveTower, open_folder, read_settings

_VIDEO = ("videomae",)
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def is_backbone(folder: Path) -> bool:
    """Whether a folder is one that transformers wrote."""
    return "model_type" in read_settings(folder / "config.json")


def load_backbone(folder: Path, choose_frames: FrameChoice = middle_frame) -> Embedder:
    """Opens a backbone; nothing is downloaded and no code of the folder is run.

    Args:
        folder: What transformers' ``save_pretrained`` wrote.
        choose_frames: Which frames DINOv2 sees; VideoMAE takes its number of them, evenly spaced.

    Raises:
        ValueError: transformers is missing, or the model is none of the four kinds.
    """
    kind = read_settings(folder / "config.json").get("model_type")
    if kind not in SOUND + PICTURE + _VIDEO:
        known = ", ".join(SOUND + PICTURE + _VIDEO)
        raise ValueError(f"{folder} holds a {kind} model; backbones are {known}")
    if kind in SOUND:
        return SoundBackbone(WaveTower.open(folder).eval())
    model, settings = open_folder(folder, PICTURE + _VIDEO)
    if kind in PICTURE:
        return PictureBackbone(model.eval(), settings, choose_frames)
    return VideoBackbone(model.eval(), settings)


class SoundBackbone(Embedder):
    """Wav2Vec2 or HuBERT: the mean of the last layer over a sound's own frames.

    Args:
        tower: Gives the tokens; padding changes none of them.
    """

    def __init__(self, tower: WaveTower) -> None:
        super().__init__()
        self.tower = tower
        self.audio, self.choose_frames = True, None
        self.num_samples = NUM_SAMPLES

    def forward(self, batch: AVBatch) -> Vectors:
        """See `Embedder`."""
        assert batch.waveform is not None
        assert batch.num_samples is not None
        return {"audio": self.tower(Sound(batch.waveform, batch.num_samples)).mean()}


class _Frames(Embedder):
    """What both picture models share: size and normalisation of the frames.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self.audio = False
        crop = settings.get("crop_size") or settings.get("size") or {}
        crop = crop if isinstance(crop, dict) else {"height": crop}  # as transformers wrote it once
        self.image_size = crop.get("height") or crop.get("shortest_edge") or min(self.config.image_size, 224)
        for name in ("mean", "std"):
            values = torch.tensor(settings.get(f"image_{name}", _IMAGENET[f"image_{name}"]))
            self.register_buffer(name, 255 * values[:, None, None], persistent=False)

    def pictures(self, batch: AVBatch) -> Tensor:
        """(B, N, 3, H, W) normalised frames."""
        assert batch.frames is not None
        return (batch.frames.float() - self.mean) / self.std


class PictureBackbone(_Frames):
    """DINOv2: the class token after the last norm, and its mean over frames.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
        choose_frames: Which of a clip's frames it sees.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any], choose_frames: FrameChoice) -> None:
        super().__init__(model, settings)
        self.choose_frames = choose_frames

    def forward(self, batch: AVBatch) -> Vectors:
        """See `Embedder`."""
        frames = self.pictures(batch)
        vectors = self.model(frames.flatten(0, 1)).pooler_output.float()
        return {"visual": vectors.unflatten(0, frames.shape[:2]).mean(dim=1)}


class VideoBackbone(_Frames):
    """VideoMAE: the mean over all tokens of its number of frames, evenly spaced.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__(model, settings)
        self.choose_frames = EvenFrames(self.config.num_frames, repeat=True)

    def forward(self, batch: AVBatch) -> Vectors:
        """See `Embedder`."""
        return {"visual": self.model(self.pictures(batch)).last_hidden_state.float().mean(dim=1)}
