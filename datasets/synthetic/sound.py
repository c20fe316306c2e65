"""The sound of a generated clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.synthetic.scene import SyntheticConfig, clip_generator, make_scene

SAMPLE_RATE = 16000


def render_sound(config: SyntheticConfig, split: str, index: int) -> np.ndarray:
    """(S,) float32 sound of a clip at SAMPLE_RATE, within [-1, 1]."""
    rng = clip_generator(config, split, index, "sound")
    num_samples = round(config.seconds * SAMPLE_RATE)
    times = np.arange(num_samples) / SAMPLE_RATE
    sound = np.zeros(num_samples)
    coarse = np.linspace(0, config.seconds, round(config.seconds * 1000) + 1)
    for thing in make_scene(config, split, index):
        if thing.loudness:
            envelope = np.interp(times, coarse, thing.envelope(coarse, config.seconds))
            hiss = _noise_band(rng, num_samples, thing.hiss_hz, 0.06 * thing.hiss_hz)
            sound += envelope * (_tone(thing.timbre, thing.pitch_hz, times, rng) + 0.35 * hiss)
    loudness = np.sqrt(np.mean(sound**2))
    noise_db = -30 + 26 * config.difficulty + rng.uniform(-3, 3)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    tilt = np.linspace(0.02, 1, len(spectrum)) ** -rng.uniform(0, 0.5)
    noise = np.fft.irfft(spectrum * tilt, num_samples)
    sound += noise * (loudness * 10 ** (noise_db / 20) / np.std(noise))
    gain = 10 ** (-rng.uniform(0, 12) / 20)  # how loud a clip is says nothing
    return (0.9 * gain * sound / np.abs(sound).max()).astype(np.float32)


def _tone(timbre: str, pitch: float, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S,) the steady tone of a timbre at a pitch in Hz, of mean square about 1."""
    phase = 2 * np.pi * (pitch * times + rng.random())
    slow = times + rng.random()
    match timbre:
        case "disc":  # nearly pure
            return _harmonics(phase, pitch, [1.0, 0.1])
        case "ring":  # a bell: partials that are no harmonics
            partials = [np.sin(ratio * phase) for ratio in (1, 1.51, 2.76, 4.07) if ratio * pitch < 7800]
            return np.sum(partials, axis=0) / 1.4
        case "square":  # odd harmonics
            return _harmonics(phase, pitch, [1 / h if h % 2 else 0.0 for h in range(1, 16)])
        case "triangle":  # all harmonics
            return _harmonics(phase, pitch, [h**-0.5 for h in range(1, 9)])
        case "star":  # trembling
            return _harmonics(phase, pitch, [1, 0.7, 0.5]) * (1 - 0.95 * np.cos(2 * np.pi * 14 * slow))
        case "plus":  # breath: a band of noise at the pitch
            return _noise_band(rng, len(times), pitch, 0.12 * pitch)
        case "bars":  # cut into pieces
            return _harmonics(phase, pitch, [1, 0, 0.6, 0, 0.4]) * (1.4 * ((5 * slow) % 1 < 0.5))
        case "hourglass":  # wailing up and down
            sweep = 0.25 * pitch / 2.5 * np.sin(2 * np.pi * 2.5 * slow)  # the pitch changes by a quarter
            return _harmonics(phase + sweep, pitch, [1.0, 0.4, 0.2])
    raise AssertionError(f"no such timbre: {timbre}")


def _harmonics(phase: np.ndarray, pitch: float, amplitudes: Sequence[float]) -> np.ndarray:
    """A sum of harmonics below the Nyquist frequency, of mean square 1."""
    cycle = 2 * np.pi * np.arange(2048) / 2048
    kept = [(h, a) for h, a in enumerate(amplitudes, start=1) if 1.3 * h * pitch < SAMPLE_RATE / 2 and a]
    table = sum(a * np.sin(h * cycle) for h, a in kept) / np.sqrt(sum(a * a for _, a in kept) / 2)
    return table[(phase * (2048 / (2 * np.pi))).astype(np.int64) % 2048]


def _noise_band(rng: np.random.Generator, num_samples: int, center: float, width: float) -> np.ndarray:
    """Noise of mean square 1 in a band of the given standard deviation, both in Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    hertz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * ((hertz - center) / width) ** 2), num_samples)
    return noise / np.std(noise)
