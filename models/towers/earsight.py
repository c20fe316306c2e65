"""Towers from Earsight's own encoders: any run, checkpoint or exported weights, whatever the family."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from atomic import write_atomically
from models.encoders import Encoder
from models.frontend import FbankConfig
from models.registry import build_encoder
from models.towers.base import AudioTower, Sound, Tokens, VisualTower
from models.weights.description import parse_fbank, parse_model
from models.weights.initialize import initialize
from models.weights.sources import SourceKind, read_weights
from models.weights.tensor_files import read_json

_KEPT = "encoder.json"


class _EncoderTower(nn.Module):
    """What both modalities' towers share.

    Args:
        encoder: With its weights, or without where these come later.
        fbank: The spectrograms that it was trained on.
    """

    def __init__(self, encoder: Encoder[Any], fbank: FbankConfig) -> None:
        super().__init__()
        self.encoder, self.fbank = encoder, fbank

    @classmethod
    def open(cls, source: Path) -> Any:
        """The tower of a run, a checkpoint or an exported file.

        Raises:
            WeightsError: There are no such weights, or they are no trained encoder.
            ValueError: They are of a picture model, or its towers are others' models in folders of their own.
        """
        found = read_weights(source)
        if found.kind is SourceKind.vit:
            raise ValueError(
                f"{found.path} is a picture model: a start for training (init), no trained encoder"
            )
        config = found.model_config()
        if not config.is_self_contained:
            raise ValueError(
                f"{found.path} took its towers from other sources, which can't be read through it: name one of these "
                "as the source"
            )
        encoder = build_encoder(config)
        initialize(encoder, found)
        fbank = found.fbank or FbankConfig(
            target_length=config.audio_length, num_mel_bins=config.num_mel_bins
        )
        return cls(encoder, fbank)

    @classmethod
    def kept(cls, folder: Path) -> Any:
        """The tower of which `keep` has written, its weights drawn."""
        values = read_json(folder / _KEPT)
        config = parse_model(values.get("model"), str(folder))
        return cls(build_encoder(config), parse_fbank(values.get("fbank"), str(folder)))

    def keep(self, folder: Path) -> None:
        """See `Tower.keep`."""
        values = {"model": asdict(self.encoder.config), "fbank": asdict(self.fbank)}
        write_atomically(folder / _KEPT, json.dumps(values, indent=1) + "\n")


class EncoderAudioTower(_EncoderTower, AudioTower):
    """The tokens that an encoder has of the sound alone."""

    def __init__(self, encoder: Encoder[Any], fbank: FbankConfig) -> None:
        super().__init__(encoder, fbank)
        with torch.no_grad():
            config = encoder.config
            self.width = encoder.sound_tokens(
                torch.zeros(1, config.audio_length, config.num_mel_bins)
            ).values.shape[2]

    def forward(self, inputs: Sound) -> Tokens:
        """Tokens of the encoder's grid; patches behind a clip's end are padding."""
        if inputs.fbank is None:
            raise ValueError(
                "this tower hears spectrograms, and was given a waveform alone: make its input with Sound.of"
            )
        if inputs.num_frames is None:
            return self.encoder.sound_tokens(inputs.fbank)
        columns = -(-inputs.num_frames // self.encoder.config.audio_patch_length)
        found = self.encoder.sound_tokens(inputs.fbank, columns)
        inside = torch.arange(found.grid[-1], device=columns.device) < columns[:, None]
        mask = found.mask & (inside | (found.grid[-1] == 1)).repeat(1, found.grid[0])
        return Tokens(found.values, mask, found.grid, found.cls)


class EncoderVisualTower(_EncoderTower, VisualTower):
    """The tokens that an encoder has of the frames alone."""

    def __init__(self, encoder: Encoder[Any], fbank: FbankConfig) -> None:
        super().__init__(encoder, fbank)
        config = encoder.config
        self.num_frames = config.num_frames
        with torch.no_grad():
            frames = torch.zeros(1, config.num_frames, 3, config.image_size, config.image_size)
            self.width = encoder.frame_tokens(frames).values.shape[2]

    def check_size(self, side: int) -> None:
        """See `VisualTower.check_size`."""
        if side != self.encoder.config.image_size:
            raise ValueError(
                f"the encoder was trained on pictures of {self.encoder.config.image_size} pixels: set model.image_size "
                f"to it, which is {side}"
            )

    def forward(self, inputs: Tensor) -> Tokens:
        """(B, N, 3, H, W), N a multiple of `num_frames`, which pass together -> tokens of the grid (N', H', W')."""
        clips = len(inputs)
        found = self.encoder.frame_tokens(rearrange(inputs, "b (m n) ... -> (b m) n ...", n=self.num_frames))
        values, mask = (
            rearrange(x, "(b m) l ... -> b (m l) ...", b=clips) for x in (found.values, found.mask)
        )
        cls = None if found.cls is None else rearrange(found.cls, "(b m) d -> b m d", b=clips).mean(1)
        frames, *places = found.grid
        return Tokens(values, mask, (len(found.values) // clips * frames, *places), cls)
