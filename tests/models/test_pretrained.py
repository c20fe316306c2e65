"""Encoders with their preprocessing: vectors that depend on the clip alone, whatever it is batched with."""

from pathlib import Path

import pytest
import torch
from support.small_models import small_model
from support.sources import mae_state, randomize

from models import CavMaeModelConfig, FbankConfig, PretrainedEncoders, load_pretrained
from models.cav_mae.mae import pool
from models.weights.description import Description
from models.weights.errors import WeightsError

REFERENCE = Path(__file__).parents[1] / "reference" / "cav_mae_norm_pix.safetensors"


@pytest.fixture(scope="module")
def encoders() -> PretrainedEncoders:
    model = small_model(audio_length=128)
    randomize(model)
    fbank = FbankConfig(target_length=128, num_mel_bins=32)
    return PretrainedEncoders(model.encoder, Description(model.config, fbank)).eval()


def sound(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (B, S) batch of noise, each clip of its own length and zeros after it."""
    generator = torch.Generator().manual_seed(3)
    wave = torch.zeros(len(lengths), max(lengths), dtype=torch.int16)
    for row, length in zip(wave, lengths, strict=True):
        row[:length] = torch.randint(-9000, 9000, (length,), generator=generator, dtype=torch.int16)
    return wave, torch.tensor(lengths)


def pictures(batch: int, frames: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (batch, frames, 3, 32, 32), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def test_a_short_clip_s_vectors_do_not_depend_on_its_batch(encoders):
    wave, lengths = sound(4000, 20000, 9000, 4000)
    frames = pictures(4)
    together = encoders(wave, lengths, frames)
    for row, length in enumerate(lengths.tolist()):
        alone = encoders(wave[row : row + 1, :length], lengths[row : row + 1], frames[row : row + 1])
        for name in ("audio", "visual", "joint"):
            torch.testing.assert_close(
                getattr(together, name)[row], getattr(alone, name)[0], rtol=0, atol=2e-6
            )


@torch.no_grad()
def test_padding_would_have_changed_the_vectors(encoders):
    """What the test above is worth: pooled over padding too, a short clip's vector is another one."""
    wave, lengths = sound(4000)
    fbank = encoders.audio_front_end(wave, lengths)
    with_padding = pool(encoders.encoder(fbank, joint=False).audio)
    assert (with_padding - encoders(wave, lengths).audio).abs().max() > 1e-2


@torch.no_grad()
def test_a_full_clip_is_what_the_encoder_says(encoders):
    wave, lengths = sound(encoders.fbank.num_samples, encoders.fbank.num_samples)
    frames = pictures(2)
    streams = encoders.encoder(
        encoders.audio_front_end(wave, lengths), encoders.visual_front_end(frames[:, 0])
    )
    found = encoders(wave, lengths, frames[:, 0])
    for name in ("audio", "visual", "joint"):
        torch.testing.assert_close(getattr(found, name), getattr(streams, name).mean(dim=1))


@torch.no_grad()
def test_several_frames_are_averaged(encoders):
    wave, lengths = sound(6000, 20480)
    frames = pictures(2, frames=3)
    found = encoders(wave, lengths, frames)
    each = [encoders(wave, lengths, frames[:, i]) for i in range(3)]
    for name in ("visual", "joint"):
        expected = torch.stack([getattr(one, name) for one in each]).mean(dim=0)
        torch.testing.assert_close(getattr(found, name), expected)
    torch.testing.assert_close(found.audio, each[0].audio)


@torch.no_grad()
def test_one_modality_is_enough_and_long_sounds_are_cut(encoders):
    wave, lengths = sound(50_000)
    found = encoders(wave, lengths)
    assert found.visual is None
    assert found.joint is None
    limit = encoders.fbank.num_samples
    torch.testing.assert_close(found.audio, encoders(wave[:, :limit]).audio)
    assert encoders(frames=pictures(2)).audio is None


def test_columns_of_patches_with_sound(encoders):
    frame = 400
    lengths = torch.tensor([0, frame, frame + 15 * 160, frame + 16 * 160, 10**6])
    assert encoders.audio_columns(lengths).tolist() == [1, 1, 1, 2, 8]


def test_published_files_load_in_one_line(tmp_path):
    from safetensors.torch import load_file, save_file

    reference = load_file(REFERENCE)
    state = {k.removeprefix("pretrain."): v for k, v in reference.items() if k.startswith("pretrain.")}
    save_file(state, tmp_path / "cav.safetensors")
    encoders = load_pretrained(tmp_path / "cav.safetensors", num_heads=2, decoder_num_heads=4)
    assert not encoders.training
    assert isinstance(encoders.config, CavMaeModelConfig)
    assert encoders.config.layer_norm_eps == 1e-5
    assert encoders.fbank.mean == -5.081
    with torch.no_grad():
        streams = encoders.encoder(reference["input.fbank"], reference["input.frame"], joint=False)
    torch.testing.assert_close(pool(streams.audio), reference["expect.feature_audio"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool(streams.visual), reference["expect.feature_visual"], rtol=1e-4, atol=1e-5)


def test_a_picture_model_is_no_trained_encoder(tmp_path):
    torch.save({"model": mae_state()}, tmp_path / "mae.pth")
    with pytest.raises(WeightsError, match="a start for training"):
        load_pretrained(tmp_path / "mae.pth")
