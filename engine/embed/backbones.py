"""Other people's backbones as baselines, from local folders through transformers (optional).

Wav2Vec2 and HuBERT for sound, DINOv2 and VideoMAE for frames. They take the same batches as our encoders, so
that the same command embeds with them and the same probes measure them.
"""

from __future__ import annotations

import importlib.util
import json
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

_SOUND = ("wav2vec2", "hubert")
_PICTURE = ("dinov2",)
_VIDEO = ("videomae",)
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def is_backbone(folder: Path) -> bool:
    """Whether a folder is one that transformers wrote."""
    return "model_type" in _read(folder / "config.json")


def load_backbone(folder: Path, choose_frames: FrameChoice = middle_frame) -> Embedder:
    """Opens a backbone; nothing is downloaded and no code of the folder is run.

    Args:
        folder: What transformers' ``save_pretrained`` wrote.
        choose_frames: Which frames DINOv2 sees; VideoMAE takes its number of them, evenly spaced.

    Raises:
        ValueError: transformers is missing, or the model is none of the four kinds.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(f"{folder} needs transformers: pip install -e '.[backbones]'")
    kind = _read(folder / "config.json").get("model_type")
    if kind not in _SOUND + _PICTURE + _VIDEO:
        known = ", ".join(_SOUND + _PICTURE + _VIDEO)
        raise ValueError(f"{folder} holds a {kind} model; backbones are {known}")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True, weights_only=True).eval()
    settings = _read(folder / "preprocessor_config.json")
    if kind in _SOUND:
        return SoundBackbone(model, settings)
    if kind in _PICTURE:
        return PictureBackbone(model, settings, choose_frames)
    return VideoBackbone(model, settings)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


class SoundBackbone(Embedder):
    """Wav2Vec2 or HuBERT: the mean of the last layer over a sound's own frames.

    Where the first layer normalises over time (``feat_extract_norm: group``, the base models) padding would
    change all frames, and only clips of one length are encoded together.

    Args:
        model: Of transformers.
        settings: Its ``preprocessor_config.json``.
    """

    def __init__(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self.normalize = settings.get("do_normalize", True)
        self.audio, self.choose_frames = True, None
        self.num_samples = NUM_SAMPLES
        self.least = 1  # samples that make one frame
        for kernel, stride in reversed(
            list(zip(self.config.conv_kernel, self.config.conv_stride, strict=True))
        ):
            self.least = (self.least - 1) * stride + kernel

    def forward(self, batch: AVBatch) -> Vectors:
        """See `Embedder`."""
        assert batch.waveform is not None
        assert batch.num_samples is not None
        lengths = batch.num_samples.clamp_min(self.least)
        inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        wave = self._normalized(batch.waveform[:, : inside.shape[1]], inside)
        if self.config.feat_extract_norm != "group":
            return {"audio": self._mean(wave, inside)}
        found = torch.zeros(len(wave), self.config.hidden_size, device=wave.device)
        for length in lengths.unique().tolist():
            rows = lengths == length
            found[rows] = self._mean(wave[rows, :length], inside[rows, :length])
        return {"audio": found}

    def _normalized(self, waveform: Tensor, inside: Tensor) -> Tensor:
        """Zero mean and unit variance over each clip's own samples, as the models were trained."""
        wave = waveform.float() / 32768
        if not self.normalize:
            return wave * inside
        count = inside.sum(dim=1, keepdim=True)
        wave = wave - (wave * inside).sum(dim=1, keepdim=True) / count
        variance = (wave.square() * inside).sum(dim=1, keepdim=True) / count
        return wave / (variance + 1e-7).sqrt() * inside

    def _mean(self, wave: Tensor, inside: Tensor) -> Tensor:
        hidden = self.model(wave, attention_mask=inside.long()).last_hidden_state.float()
        frames = self.model._get_feat_extract_output_lengths(inside.sum(dim=1))  # type: ignore[operator]
        own = (torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]).unsqueeze(2)
        return (hidden * own).sum(dim=1) / own.sum(dim=1)


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
