"""Mean and standard deviation of a set's log-mel values, with which its spectrograms are normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasets.media.container import SAMPLE_RATE
from datasets.shards.manifest import FbankStats

if TYPE_CHECKING:
    from torch import Tensor

MEL_BINS = 128
FRAME_SHIFT_MS = 10.0
WINDOW_SECONDS = 0.025


def spread_rows(num_rows: int, count: int) -> list[int]:
    """Up to ``count`` rows, evenly spread."""
    count = min(count, num_rows)
    return [i * num_rows // count for i in range(count)]


@dataclass
class Moments:
    """Sums from which mean and standard deviation follow.

    Attributes:
        count: Number of log-mel values.
        total: Their sum.
        squares: The sum of their squares.
        clips: Number of clips they are from.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    clips: int = 0

    def add(self, other: Moments) -> None:
        """Takes another's sums in."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.clips += other.clips

    def stats(self) -> FbankStats | None:
        """Mean and standard deviation; None of nothing."""
        if not self.count:
            return None
        mean = self.total / self.count
        variance = max(self.squares / self.count - mean * mean, 0.0)
        return FbankStats(round(mean, 6), round(variance**0.5, 6), self.clips)


def log_mel(waveform: Tensor) -> Tensor:
    """(T, 128) Kaldi log-mel of a (S,) int16 waveform at 16 kHz, with the settings of the published models.

    Source: AST, AudioMAE and CAV-MAE: mean subtracted, 25 ms Hann window, 10 ms shift, no dither, no energy.
    """
    import torch  # takes seconds, which who only adds moments up need not spend
    from torchaudio.compliance import kaldi

    samples = waveform.to(torch.float32) / 32768
    return kaldi.fbank(
        (samples - samples.mean())[None],
        htk_compat=True,
        sample_frequency=SAMPLE_RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=MEL_BINS,
        dither=0.0,
        frame_shift=FRAME_SHIFT_MS,
    )


def measure_fbank(waveform: NDArray[np.int16], sample_rate: int) -> Moments:
    """Moments of the log-mel values of a (S,) int16 waveform, at its true length (no padding)."""
    import torch
    from torchaudio.functional import resample

    samples = torch.from_numpy(waveform)
    if sample_rate != SAMPLE_RATE:
        samples = resample(samples.float(), sample_rate, SAMPLE_RATE)
    if len(samples) < WINDOW_SECONDS * SAMPLE_RATE:
        return Moments()
    values = log_mel(samples).double()
    return Moments(values.numel(), values.sum().item(), values.square().sum().item(), 1)
