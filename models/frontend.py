"""From decoded media to the model's input, batched on the device: Kaldi-style log-mel, normalised frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


_LARGEST = {
    "sample_rate": 768_000, "num_mel_bins": 1024, "target_length": 65_536,
    "frame_length_ms": 1000, "frame_shift_ms": 1000,
}  # fmt: skip


@dataclass(frozen=True)
class FbankConfig:
    """The log-mel spectrogram. The defaults are those of the published CAV-MAE on AudioSet.

    Attributes:
        sample_rate: Of the waveform, in Hz.
        num_mel_bins: F.
        target_length: T, frames to which the spectrogram is cut or zero-padded.
        frame_length_ms: Analysis window.
        frame_shift_ms: Step from window to window.
        mean: Mean of the log-mel over the training set.
        std: Standard deviation likewise.
    """

    sample_rate: int = 16000
    num_mel_bins: int = 128
    target_length: int = 1024
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    mean: float = -5.081
    std: float = 4.4849

    def __post_init__(self) -> None:
        for name in (
            "sample_rate",
            "num_mel_bins",
            "target_length",
            "frame_length_ms",
            "frame_shift_ms",
            "std",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"fbank.{name} is {getattr(self, name)}; it must be positive")
        if not (math.isfinite(self.mean) and math.isfinite(self.std)):
            raise ValueError(f"fbank.mean {self.mean} and fbank.std {self.std} must be finite")
        for name, largest in _LARGEST.items():
            if not getattr(self, name) <= largest:
                raise ValueError(f"fbank.{name} is {getattr(self, name):.15g}; it can be {largest} at most")
        if self.frame_length < 2 or self.frame_shift < 1:
            raise ValueError(
                "fbank.frame_length_ms and frame_shift_ms must span at least 2 samples and 1 sample"
            )

    @property
    def num_samples(self) -> int:
        """Samples of a waveform that fill all T frames."""
        return (self.target_length - 1) * self.frame_shift + self.frame_length

    @property
    def frame_length(self) -> int:
        """Samples in a window."""
        return int(self.sample_rate * self.frame_length_ms / 1000)

    @property
    def frame_shift(self) -> int:
        """Samples from window to window."""
        return int(self.sample_rate * self.frame_shift_ms / 1000)


def mel_filters(num_mel_bins: int, fft_length: int, sample_rate: int, low_freq: float = 20.0) -> Tensor:
    """Kaldi's triangular filters, equally spaced in mel, ``1127 ln(1 + f / 700)``, up to Nyquist.

    Returns:
        (fft_length / 2 + 1, num_mel_bins) float32; the Nyquist bin has no weight.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * (1.0 + hertz / 700.0).log()

    low, high = mel(torch.tensor([low_freq, sample_rate / 2], dtype=torch.float64))
    step = (high - low) / (num_mel_bins + 1)
    left = low + step * torch.arange(num_mel_bins, dtype=torch.float64)
    bins = mel(torch.arange(fft_length // 2, dtype=torch.float64) * (sample_rate / fft_length))[:, None]
    weights = torch.minimum((bins - left) / step, (left + 2 * step - bins) / step).clamp_min(0)
    return F.pad(weights, (0, 0, 0, 1)).float()


class AudioFrontEnd(nn.Module):
    """Waveforms -> normalised log-mel, equal to ``torchaudio.compliance.kaldi.fbank`` clip by clip.

    Mean-subtracted waveform, Hann windows wholly inside the clip, no dither, pre-emphasis 0.97, power
    spectrum, log. Frames past a clip's end are zeros before the normalisation, as in the published data
    loader.

    Args:
        config: The spectrogram's settings.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FbankConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FbankConfig()
        self.fft_length = 2 ** math.ceil(math.log2(config.frame_length))
        self.register_buffer(
            "window", torch.hann_window(config.frame_length, periodic=False), persistent=False
        )
        filters = mel_filters(config.num_mel_bins, self.fft_length, config.sample_rate)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """The spectrograms of a batch.

        Args:
            waveform: (B, S) int16, or float in [-1, 1], padded to S.
            num_samples: (B,) int64 true lengths.

        Returns:
            (B, T, F) float32.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            log_mel = self._log_mel(self._center(waveform, num_samples))
            true_frames = (num_samples - self.config.frame_length) // self.config.frame_shift + 1
            padding = torch.arange(log_mel.shape[1], device=waveform.device) >= true_frames[:, None]
            log_mel = log_mel.masked_fill(padding[:, :, None], 0.0)
            log_mel = F.pad(log_mel, (0, 0, 0, self.config.target_length - log_mel.shape[1]))
            return (log_mel - self.config.mean) / self.config.std

    @staticmethod
    def _center(waveform: Tensor, num_samples: Tensor) -> Tensor:
        """(B, S) float32 in [-1, 1) less each clip's mean over its true length."""
        scale = 1.0 if waveform.is_floating_point() else 1 / 32768
        inside = torch.arange(waveform.shape[1], device=waveform.device) < num_samples[:, None]
        # Exact sums, whatever their order, so that padding cannot change the mean.
        exact = torch.float64 if waveform.is_floating_point() else torch.int64
        total = (waveform * inside).sum(dim=1, keepdim=True, dtype=exact)
        mean = total.double() * scale / num_samples.clamp_min(1)[:, None]
        return waveform.float() * scale - mean.float()

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, at most T, F), the frames that fit in S."""
        length, shift = self.config.frame_length, self.config.frame_shift
        waveform = F.pad(waveform, (0, max(0, length - waveform.shape[1])))[:, : self.config.num_samples]
        frames = waveform.unfold(1, length, shift)
        frames = frames - frames.mean(dim=2, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        spectrum = torch.fft.rfft((frames - 0.97 * previous) * self.window, n=self.fft_length)
        power = torch.view_as_real(spectrum).square().sum(dim=-1)
        return (power @ self.filters).clamp_min(torch.finfo(torch.float32).eps).log()


class VisualFrontEnd(nn.Module):
    """Pictures as decoded -> normalised by ImageNet's mean and standard deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(..., 3, H, W) uint8 -> the same shape in float32, normalised."""
        return (frames.float() - self.mean) / self.std

    def invert(self, pictures: Tensor) -> Tensor:
        """(..., 3, H, W) normalised -> uint8, for looking at."""
        return (pictures.float() * self.std + self.mean).round().clamp(0, 255).byte()
