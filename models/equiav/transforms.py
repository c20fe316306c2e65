"""EquiAV's transformations of spectrogram and picture, and the description of each that its predictor reads.

A transformation is drawn from a sample's seed, applied in a batch on the device, and described by numbers in 0…1 that
are zero where nothing was applied. The entries' order is the published one. The published code's defects are not kept:
its crops and masks are described in units of the wrong axes (entries up to 1021), its time shift moves the channels,
and its jitter cuts the normalised spectrogram to 0…1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.image_operations import (
    draw_crops,
    gaussian_blur,
    jitter_colors,
    resized_crop,
    to_grey,
)
from models.sample_random import Stream, spawn, uniform

AUDIO_DESCRIPTION = 24
VISUAL_DESCRIPTION = 18
_ASPECT_AUDIO, _ASPECT_VISUAL = (0.8, 1.5), (3 / 4, 4 / 3)
_JITTER, _HUE = (0.6, 1.4), (-0.1, 0.1)
_SIGMA = (0.1, 2.0)


@dataclass(frozen=True)
class TransformConfig:
    """How inputs are transformed; the defaults are the published ones.

    Attributes:
        min_crop: Least share of the area that a crop keeps.
        spec_probability: Of masking a band and a stretch of the spectrogram and rolling it in time, together.
        max_time_mask: Longest stretch masked, as a share of the spectrogram's length (published: 192 of 1024).
        max_frequency_mask: Widest band masked, as a share of the mel bins (published: 48 of 128).
        jitter_probability: Of changing brightness and contrast, of a picture also saturation and hue.
        blur_probability: Of a Gaussian blur.
        flip_probability: Of a flip of the last axis: left and right of a picture, low and high of a spectrogram.
        grey_probability: Of a picture in grey.
    """

    min_crop: float = 0.08
    spec_probability: float = 0.8
    max_time_mask: float = 0.1875
    max_frequency_mask: float = 0.375
    jitter_probability: float = 0.8
    blur_probability: float = 0.5
    flip_probability: float = 0.5
    grey_probability: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"transforms.{name} is {value}; it must lie in [0, 1]")
        if self.min_crop == 0:
            raise ValueError("transforms.min_crop is 0; a crop must keep something of the picture")


@dataclass(frozen=True)
class AudioTransform:
    """Transformations of B spectrograms.

    Attributes:
        size: T, F of the spectrogram.
        spec: (B,) bool, whether masks and roll are applied.
        time_mask: (B, 2) first frame masked and the first no longer masked.
        frequency_mask: (B, 2) likewise of mel bins.
        roll: (B,) frames that the spectrogram is moved by, in [0, T).
        crop: (B, 4) top (time), left (mel), height, width.
        jitter: (B,) bool, whether brightness and contrast are changed.
        factors: (B, 2) of brightness and contrast, in [0, 1) over their range.
        blur: (B,) bool, whether it is blurred.
        sigma: (B,) of the blur, in [0, 1) over its range.
        flip: (B,) bool, whether the mel bins are reversed.
    """

    size: tuple[int, int]
    spec: Tensor
    time_mask: Tensor
    frequency_mask: Tensor
    roll: Tensor
    crop: Tensor
    jitter: Tensor
    factors: Tensor
    blur: Tensor
    sigma: Tensor
    flip: Tensor

    @staticmethod
    def draw(seeds: Tensor, size: tuple[int, int], config: TransformConfig) -> AudioTransform:
        """One for each of (B,) seeds, for (T, F) spectrograms."""
        length, bins = size
        coins = uniform(seeds, Stream.AUDIO_TRANSFORM, (4,))
        values = uniform(seeds, Stream.AUDIO_TRANSFORM_VALUES, (8,))
        ratio = (_ASPECT_AUDIO[0] * bins / length, _ASPECT_AUDIO[1] * bins / length)
        tries = uniform(seeds, Stream.AUDIO_CROP, (10, 4))
        return AudioTransform(
            size=size,
            spec=coins[:, 0] < config.spec_probability,
            time_mask=_mask(values[:, 0:2], length, config.max_time_mask),
            frequency_mask=_mask(values[:, 2:4], bins, config.max_frequency_mask),
            roll=(values[:, 4] * length).long(),
            crop=draw_crops(tries, size, (config.min_crop, 1.0), ratio),
            jitter=coins[:, 1] < config.jitter_probability,
            factors=values[:, 5:7],
            blur=coins[:, 2] < config.blur_probability,
            sigma=values[:, 7],
            flip=coins[:, 3] < config.flip_probability,
        )

    def describe(self) -> Tensor:
        """(B, 24) in 0…1, zero where nothing was applied.

        The entries of saturation, hue and the order of the four stay zero: in a spectrogram of equal channels that is
        not clamped they change nothing.
        """
        length, bins = self.size
        masks = torch.cat([self.time_mask / length, self.frequency_mask / bins], dim=1)
        nothing = torch.zeros_like(self.factors)
        spec, jitter, blur = (x.float()[:, None] for x in (self.spec, self.jitter, self.blur))
        parts = [
            spec, spec * masks,
            spec, spec * self.roll[:, None] / length,
            torch.ones_like(spec), _describe_crop(self.crop, self.size),
            jitter, nothing, nothing, jitter * self.factors, nothing,
            blur, blur * self.sigma[:, None],
            self.flip.float()[:, None],
        ]  # fmt: skip
        return torch.cat(parts, dim=1)

    def apply(self, fbank: Tensor) -> Tensor:
        """(B, T, F) normalised spectrograms, transformed; masked is 0, the mean."""
        length, bins = self.size
        masked = _inside(self.time_mask, length)[:, :, None] | _inside(self.frequency_mask, bins)[:, None]
        fbank = fbank.masked_fill(masked & self.spec[:, None, None], 0.0)
        roll = torch.where(self.spec, self.roll, 0)
        source = (torch.arange(length, device=fbank.device) - roll[:, None]) % length
        fbank = fbank[torch.arange(len(fbank), device=fbank.device)[:, None], source]
        fbank = resized_crop(fbank[:, None], self.crop)[:, 0]
        fbank = torch.where(self.jitter[:, None, None], self._jittered(fbank), fbank)
        sigma = _SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * self.sigma
        radius = torch.where(self.blur, sigma.ceil(), 0)
        fbank = gaussian_blur(fbank[:, None], sigma, radius, 2)[:, 0]
        return torch.where(self.flip[:, None, None], fbank.flip(2), fbank)

    def _jittered(self, fbank: Tensor) -> Tensor:
        """Brightness multiplies, contrast blends with the mean; unclamped, either order is the same."""
        brightness, contrast = (_JITTER[0] + (_JITTER[1] - _JITTER[0]) * self.factors)[
            :, :, None, None
        ].unbind(1)
        mean = fbank.mean(dim=(1, 2), keepdim=True)
        return brightness * (contrast * fbank + (1 - contrast) * mean)


@dataclass(frozen=True)
class VisualTransform:
    """Transformations of B pictures.

    Attributes:
        size: H, W of the picture.
        crop: (B, 4) top, left, height, width.
        jitter: (B,) bool, whether the colours are changed.
        order: (B, 4) int64, a permutation of brightness, contrast, saturation, hue.
        factors: (B, 4) of these four, in [0, 1) over their range.
        blur: (B,) bool, whether it is blurred.
        sigma: (B,) of the blur, in [0, 1) over its range.
        flip: (B,) bool, whether left and right are exchanged.
        grey: (B,) bool, whether the colour is taken away.
    """

    size: tuple[int, int]
    crop: Tensor
    jitter: Tensor
    order: Tensor
    factors: Tensor
    blur: Tensor
    sigma: Tensor
    flip: Tensor
    grey: Tensor

    @staticmethod
    def draw(seeds: Tensor, size: tuple[int, int], config: TransformConfig) -> VisualTransform:
        """One for each of (B,) seeds, for (H, W) pictures."""
        coins = uniform(seeds, Stream.VISUAL_TRANSFORM, (4,))
        values = uniform(seeds, Stream.VISUAL_TRANSFORM_VALUES, (5,))
        tries = uniform(seeds, Stream.VISUAL_CROP, (10, 4))
        return VisualTransform(
            size=size,
            crop=draw_crops(tries, size, (config.min_crop, 1.0), _ASPECT_VISUAL),
            jitter=coins[:, 0] < config.jitter_probability,
            order=uniform(seeds, Stream.VISUAL_JITTER_ORDER, (4,)).argsort(dim=1, stable=True),
            factors=values[:, :4],
            blur=coins[:, 1] < config.blur_probability,
            sigma=values[:, 4],
            flip=coins[:, 2] < config.flip_probability,
            grey=coins[:, 3] < config.grey_probability,
        )

    def describe(self) -> Tensor:
        """(B, 18) in 0…1, zero where nothing was applied."""
        jitter, blur = self.jitter.float()[:, None], self.blur.float()[:, None]
        parts = [
            torch.ones_like(jitter), _describe_crop(self.crop, self.size),
            jitter, jitter * self.order / 3, jitter * self.factors,
            blur, blur * self.sigma[:, None],
            self.flip.float()[:, None],
            self.grey.float()[:, None],
        ]  # fmt: skip
        return torch.cat(parts, dim=1)

    def apply(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], transformed."""
        pictures = resized_crop(pictures, self.crop)
        blends, turn = self.factors.split([3, 1], dim=1)
        factors = [low + (high - low) * x for x, (low, high) in ((blends, _JITTER), (turn, _HUE))]
        jittered = jitter_colors(pictures, torch.cat(factors, dim=1), self.order)
        pictures = torch.where(_wide(self.jitter), jittered, pictures)
        sigma = _SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * self.sigma
        radius = torch.where(self.blur, (3 * sigma).ceil(), 0)
        pictures = gaussian_blur(pictures, sigma, radius, 6)
        pictures = torch.where(_wide(self.flip), pictures.flip(3), pictures)
        return torch.where(_wide(self.grey), to_grey(pictures), pictures)


def draw_centroids(
    seeds: Tensor,
    count: int,
    audio_size: tuple[int, int],
    visual_size: tuple[int, int],
    config: TransformConfig,
) -> tuple[Tensor, Tensor]:
    """Descriptions of ``count`` transformations that nothing is transformed by, for the predictor's centroid.

    Args:
        seeds: (B,) int64.
        count: N, how many.
        audio_size: T, F.
        visual_size: H, W.
        config: How inputs are transformed.

    Returns:
        (B, N, 24) audio and (B, N, 18) visual.
    """
    children = spawn(seeds, Stream.CENTROID, count).flatten()
    audio = AudioTransform.draw(children, audio_size, config).describe()
    visual = VisualTransform.draw(children, visual_size, config).describe()
    return audio.unflatten(0, (-1, count)), visual.unflatten(0, (-1, count))


def _mask(draws: Tensor, size: int, share: float) -> Tensor:
    """(B, 2) first place masked and the first no longer masked: SpecAugment's draws, from (B, 2) uniform ones."""
    width = draws[:, 0] * (share * size)
    first = (draws[:, 1] * (size - width)).floor()
    return torch.stack([first, first + width.floor()], dim=1)


def _inside(mask: Tensor, size: int) -> Tensor:
    """(B, size) bool of (B, 2) first and end."""
    place = torch.arange(size, device=mask.device)
    return (place >= mask[:, :1]) & (place < mask[:, 1:])


def _describe_crop(crop: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 4): each in shares of its own axis."""
    return torch.stack([part / whole for part, whole in zip(crop.unbind(1), size * 2, strict=True)], dim=1)


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None, None]
