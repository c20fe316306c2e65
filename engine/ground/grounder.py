"""A trained dense grounding model, from a clip's sound and its frames to heat."""

from __future__ import annotations

from os import PathLike

import torch
from einops import rearrange
from torch import Tensor, nn

from models import AudioFrontEnd, FbankConfig, VisualFrontEnd, build_model, family_of
from models.dense.model import DenseModel
from models.dense.similarity import pair_volumes, weighted_mean
from models.pretrained import build_described
from models.towers import Sound
from models.weights.initialize import initialize
from models.weights.sources import read_weights

#: A frame shows the heat of the sound around it: so many seconds.
_WINDOW = 0.2
#: Frames that pass the tower together.
_FRAMES = 32


class Grounder(nn.Module):
    """Heat of frames at moments of a sound.

    Args:
        model: Trained.
        fbank: The spectrogram's settings.
    """

    def __init__(self, model: DenseModel, fbank: FbankConfig) -> None:
        super().__init__()
        self.model = model.eval()
        self.audio_front_end, self.visual_front_end = AudioFrontEnd(fbank), VisualFrontEnd()

    @classmethod
    def open(cls, source: str | PathLike[str]) -> Grounder:
        """The model of a run or checkpoint.

        Raises:
            ValueError: There are no weights, or they are of no dense grounding model.
        """
        found = read_weights(source)
        config = found.model_config()
        if family_of(config.name).name != "dense":
            raise ValueError(
                f"{found.path} holds a {config.name}: heat is that of a run with objective.kind dense (docs/dense.md)"
            )
        model = build_described(found, config, lambda: build_model(config))
        assert isinstance(model, DenseModel)
        initialize(model, found)
        sizes = {"target_length": config.audio_length, "num_mel_bins": config.num_mel_bins}
        return cls(model, found.fbank or FbankConfig(**sizes))

    @property
    def image_size(self) -> int:
        """Side of the frames in pixels."""
        return self.model.config.image_size

    @property
    def seconds(self) -> float:
        """Length of the sound that is heard at a time."""
        fbank = self.audio_front_end.config
        return fbank.num_samples / fbank.sample_rate

    @torch.no_grad()
    def volume(self, waveform: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every frame with every moment of the sound.

        Args:
            waveform: (S,) int16.
            frames: (F, 3, image_size, image_size) uint8.

        Returns:
            (F, T, H, W) similarity, 0 in silence; (T,) the middles of the moments in seconds; and (T,) how much each
            counts in the similarity of the clip.
        """
        device = next(self.model.parameters()).device
        count = torch.tensor([len(waveform)], device=device)
        sound = Sound.of(self.audio_front_end, waveform[None].to(device), count)
        parts = []
        weight = torch.zeros(0)
        for some in frames.split(_FRAMES):
            pictures = self.visual_front_end(some.to(device))[None]
            tokens = self.model.encoder(sound, pictures)
            visual = rearrange(tokens.visual, "1 k (f p) c -> f k p c", f=len(some))
            volume = pair_volumes(tokens.audio, visual)[0] * tokens.sound[0]
            heat = self.model.config.similarity.join_heads(volume) * self.model.scale.factor()
            parts.append(rearrange(heat, "f (h w) t -> f t h w", h=tokens.grid[0], w=tokens.grid[1]))
            weight = self.model.encoder.weight(tokens)[0]
        moments = torch.arange(len(weight), device=device) + 0.5
        return torch.cat(parts).cpu(), (moments * self.seconds / len(weight)).cpu(), weight.cpu()

    def heat_at(self, waveform: Tensor, frames: Tensor, times: Tensor) -> Tensor:
        """The heat of each frame at its own time, the mean over the 0.2 s around it: (F, H, W).

        Args:
            waveform: (S,) int16, at most `seconds` long.
            frames: (F, 3, image_size, image_size) uint8.
            times: (F,) seconds.
        """
        volume, moments, _ = self.volume(waveform, frames)
        distance = (times[:, None] - moments).abs()
        near = distance <= (_WINDOW / 2)
        near = near | (distance == distance.amin(1, keepdim=True))
        return weighted_mean(rearrange(volume, "f t h w -> f h w t"), near.float()[:, None, None])

    def heat_of(self, waveform: Tensor, frames: Tensor) -> Tensor:
        """The heat of each frame over all of the sound, (F, H, W): what a clip's similarity is made of."""
        volume, _, weight = self.volume(waveform, frames)
        return weighted_mean(rearrange(volume, "f t h w -> f h w t"), weight)
