"""The batched log-mel against torchaudio's Kaldi port, clip by clip."""

import pytest
import torch
import torchaudio
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks
from torchvision.transforms.v2.functional import normalize

from models import AudioFrontEnd, FbankConfig, VisualFrontEnd
from models.frontend import mel_filters

LENGTHS = [400, 559, 560, 16000, 48321, 160000, 164079, 164080, 170001]


def sound(num_samples: int, seed: int = 0) -> Tensor:
    """(S,) int16: decaying harmonic notes, a chirp, hiss, some direct current and some silence."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(num_samples) / 16000
    x = 0.02 * torch.randn(num_samples, generator=generator) * (1 + torch.sin(2 * torch.pi * 0.7 * t))
    for i, onset in enumerate(torch.rand(12, generator=generator) * 10):
        pitch, after = 110 * 2 ** (i * 5 % 12 / 12), (t - onset).clamp_min(0)
        for harmonic in range(1, 6):
            x += 0.1 / harmonic * torch.exp(-3 * after) * torch.sin(2 * torch.pi * pitch * harmonic * after)
    x += 0.05 * torch.sin(2 * torch.pi * (200 + 300 * t) * t) + 0.01
    x[num_samples // 2 : num_samples // 2 + 3000] = 0
    return (x * 32767).clamp(-32768, 32767).to(torch.int16)


def kaldi(waveform: Tensor, config: FbankConfig) -> Tensor:
    """As the published data loader does it: one clip, padded after the log, then normalised."""
    x = waveform.float()[None] / 32768
    x = torchaudio.compliance.kaldi.fbank(
        x - x.mean(),
        htk_compat=True,
        sample_frequency=config.sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=config.num_mel_bins,
        dither=0.0,
        frame_shift=config.frame_shift_ms,
        frame_length=config.frame_length_ms,
    )
    x = torch.nn.functional.pad(x, (0, 0, 0, max(0, config.target_length - len(x))))[: config.target_length]
    return (x - config.mean) / config.std


def padded(clips: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(clip) for clip in clips])
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths


def test_equals_kaldi_for_clips_of_any_length_in_one_batch():
    clips = [sound(n, seed=n) for n in LENGTHS]
    front_end = AudioFrontEnd()
    fbank = front_end(*padded(clips))
    assert fbank.shape == (len(clips), 1024, 128)
    for clip, x in zip(clips, fbank, strict=True):
        difference = (x - kaldi(clip, front_end.config)).abs().max()
        assert difference * front_end.config.std < 1e-3, len(clip)


@pytest.mark.parametrize(
    "config",
    [
        FbankConfig(num_mel_bins=64, target_length=96, mean=0.0, std=1.0),
        FbankConfig(num_mel_bins=40, sample_rate=22050, frame_length_ms=32, frame_shift_ms=8),
    ],
)
def test_equals_kaldi_at_other_settings(config):
    clip = sound(30000)
    fbank = AudioFrontEnd(config)(*padded([clip]))[0]
    assert (fbank - kaldi(clip, config)).abs().max() * config.std < 1e-3


def test_a_clip_is_the_same_alone_in_a_batch_and_as_float():
    clips = [sound(n, seed=n) for n in LENGTHS]
    front_end = AudioFrontEnd()
    batch, lengths = padded(clips)
    together = front_end(batch, lengths)
    for i, clip in enumerate(clips):
        alone = front_end(*padded([clip]))[0]
        torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=0)
    torch.testing.assert_close(front_end(batch.float() / 32768, lengths), together, atol=1e-5, rtol=0)


def test_whatever_lies_past_the_end_does_not_matter():
    batch, lengths = padded([sound(20000), sound(30000)])
    before = AudioFrontEnd()(batch, lengths)
    batch[0, 20000:] = 12345
    assert torch.equal(AudioFrontEnd()(batch, lengths), before)


def test_frames_past_the_end_are_zero_before_normalisation():
    config = FbankConfig()
    fbank = AudioFrontEnd(config)(*padded([sound(399), sound(400), sound(16000)]))
    silence = torch.tensor(-config.mean / config.std)
    for x, frames in zip(fbank, (0, 1, 98), strict=True):
        assert (x[frames:] == silence).all()
        assert (x[:frames] != silence).any(dim=1).all()


def test_clips_shorter_than_a_window_make_a_batch():
    fbank = AudioFrontEnd()(torch.zeros(2, 10, dtype=torch.int16), torch.tensor([10, 0]))
    assert fbank.shape == (2, 1024, 128)
    assert torch.isfinite(fbank).all()


def test_digital_silence_is_finite():
    fbank = AudioFrontEnd(FbankConfig(mean=0.0, std=1.0))(*padded([torch.zeros(16000, dtype=torch.int16)]))
    torch.testing.assert_close(fbank[0, :98], torch.full((98, 128), torch.finfo(torch.float32).eps).log())


def test_stays_float32_under_autocast():
    batch = padded([sound(30000)])
    exact = AudioFrontEnd()(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(AudioFrontEnd()(*batch), exact)


def test_filters_are_kaldis():
    theirs, _ = get_mel_banks(128, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    torch.testing.assert_close(mel_filters(128, 512, 16000)[:256], theirs.T, atol=1e-4, rtol=0)


def test_front_ends_add_nothing_to_a_checkpoint():
    assert not AudioFrontEnd().state_dict()
    assert not VisualFrontEnd().state_dict()


@pytest.mark.parametrize("setting", ["std", "sample_rate", "target_length", "frame_shift_ms"])
def test_impossible_settings_are_named(setting):
    with pytest.raises(ValueError, match=f"fbank.{setting} is 0"):
        FbankConfig(**{setting: 0})


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 4, 3, 8, 8)])
def test_frames_equal_torchvision(shape):
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = VisualFrontEnd()(frames)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    torch.testing.assert_close(ours, normalize(frames / 255, mean, std))
    assert torch.equal(VisualFrontEnd().invert(ours), frames)
