"""The dense model's parts: heads that know no neighbours, silence, mixed clips, what it costs, wrong settings."""

from dataclasses import replace

import pytest
import torch
from support.dense import CONFIG, FBANK, clips, small_dense
from torch import Tensor

from models import AudioFrontEnd, build_encoder
from models.dense.config import DenseModelConfig, HeadConfig, ScaleConfig, TowerConfig
from models.dense.encoder import sound_mask
from models.dense.heads import AudioHead, VisualHead
from models.dense.mixing import mix_pictures, splice_sounds
from models.towers import Sound, Tokens
from models.towers.base import first

SEEDS = torch.arange(40) * 7919 + 1


def tokens(*counts: int, length: int, width: int = 12) -> Tokens:
    values = torch.randn(len(counts), length, width, generator=torch.Generator().manual_seed(0))
    return Tokens(values, first(torch.tensor(counts), length), (length,))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "config", [HeadConfig(norm=False), HeadConfig(time_convs=2, attention=True), HeadConfig(attention=True)]
)
def test_audio_heads_know_no_neighbours(config, training):
    torch.manual_seed(0)
    head = AudioHead(12, 24, config).train(training)
    counts = (20, 11, 1)
    together = head(tokens(*counts, length=20))
    with torch.no_grad():
        for row, count in enumerate(counts):
            given = tokens(*counts, length=20)
            single = head(
                Tokens(given.values[row : row + 1, :count], given.mask[row : row + 1, :count], (count,))
            )
            assert single.mask.all()
            own = together.values[row][together.mask[row]]
            torch.testing.assert_close(own, single.values[0], atol=1e-5, rtol=0)
    expected = [(count + 8) // 9 if config.time_convs else count for count in counts]
    assert together.mask.sum(1).tolist() == expected


def test_frequencies_are_averaged():
    torch.manual_seed(0)
    head = AudioHead(12, 24, HeadConfig(norm=False))
    values = torch.randn(2, 15, 12)
    found = head(Tokens(values, torch.ones(2, 15).bool(), (3, 5)))
    torch.testing.assert_close(found.values, head.proj(values.unflatten(1, (3, 5)).mean(1)))
    assert found.grid == (5,)


def test_pictures_are_pooled_in_training_alone():
    torch.manual_seed(0)
    head = VisualHead(12, 24, HeadConfig(pool=2))
    values = torch.randn(2, 2 * 5 * 4, 12)
    given = Tokens(values, torch.ones(2, 40).bool(), (2, 5, 4))
    pooled, whole = head(given), head.eval()(given)
    assert (pooled.grid, whole.grid) == ((2, 2, 2), (2, 5, 4))
    squares = (
        whole.values.unflatten(1, (2, 5, 4))[:, :, :4].unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    )
    torch.testing.assert_close(pooled.values, squares.flatten(1, 3))
    with pytest.raises(ValueError, match=r"set model\.visual_head\.pool to 1"):
        head.train()(Tokens(values, torch.ones(2, 40).bool(), (1, 1, 40)))


def test_silence_is_where_the_waveform_is_silent():
    waveform = torch.zeros(2, 1000, dtype=torch.int16)
    waveform[0, :500], waveform[1, 900:] = 3000, 20  # 20 / 32768 is 64 dB below full scale
    found = sound_mask(Sound(waveform, torch.tensor([1000, 1000])), 10, -60.0)
    assert found.tolist() == [[1] * 5 + [0] * 5, [0] * 10]
    assert sound_mask(Sound(waveform, torch.tensor([1000, 1000])), 10, -70.0)[1].tolist() == [0] * 9 + [1]


def test_a_silent_clip_is_like_nothing():
    model, batch = small_dense(), clips(3)
    assert batch.waveform is not None
    assert batch.num_samples is not None
    waveform = batch.waveform.clone()
    waveform[1] = 0
    with torch.no_grad():
        sound = Sound.of(AudioFrontEnd(FBANK), waveform, batch.num_samples)
        found = model.encoder(sound, torch.randn(3, 1, 3, 32, 32))
        heat = model.heat(found)
    assert (heat[1] == 0).all()
    assert heat[0].abs().sum() > 0


def test_frozen_towers_get_no_gradient():
    model, batch = small_dense(), clips(2)
    assert batch.waveform is not None
    assert batch.num_samples is not None
    sound = Sound.of(AudioFrontEnd(FBANK), batch.waveform, batch.num_samples)
    found = model.encoder(sound, torch.randn(2, 1, 3, 32, 32), frozen_audio=True)
    (found.audio.square().sum() + found.visual.square().sum()).backward()
    with_gradient = {name.split(".")[0] for name, p in model.encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {"visual_tower", "audio_head", "visual_head"}


def test_spliced_sounds_are_anothers_where_they_say_so():
    own, other = torch.ones(40, 300), torch.full((40, 300), 5.0)
    lengths = torch.full((40,), 300)
    lengths[3] = 10
    mixed, mask = splice_sounds(own, other, lengths, SEEDS, 0.5)
    torch.testing.assert_close(mixed, torch.where(mask == 1, own, other))
    shares = 1 - mask.mean(1)
    assert 8 < (shares > 0).sum() < 32
    chosen = shares[shares > 0.05]
    assert ((chosen > 0.19) & (chosen < 0.51)).all()
    assert (mask[3, 10:] == 1).all()
    again = splice_sounds(own[5:7], other[5:7], lengths[5:7], SEEDS[5:7], 0.5)[1]
    assert torch.equal(again, mask[5:7])  # a clip's own, whatever it is batched with


def test_mixed_pictures_are_anothers_where_they_say_so():
    own = torch.zeros(40, 1, 3, 20, 30, dtype=torch.uint8)
    mixed, mask = mix_pictures(own, own + 7, SEEDS, 1.0)
    assert torch.equal(mixed[:, 0, 0] == 0, mask == 1)
    shares = 1 - mask.mean((1, 2))
    assert ((shares > 0.03) & (shares < 0.27)).all()
    assert torch.equal(mix_pictures(own, own + 7, SEEDS, 0.0)[0], own)


def kept_bytes(model: torch.nn.Module, count: int) -> int:
    batch, kept = clips(count), {}
    assert batch.waveform is not None
    assert batch.num_samples is not None
    sound = Sound.of(AudioFrontEnd(FBANK), batch.waveform, batch.num_samples)

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = model(sound, torch.zeros(count, 1, 3, 32, 32))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert found.audio.requires_grad
    return sum(size for place, size in kept.items() if place not in own)


def test_what_a_clip_keeps_in_memory_is_what_is_counted():
    from models.dense.workload import workload

    encoder = small_dense().encoder
    counted = workload(encoder, CONFIG, FBANK.num_samples, bf16=False)
    assert counted.activations == pytest.approx(
        (kept_bytes(encoder, 6) - kept_bytes(encoder, 2)) / 4, rel=0.03
    )
    assert workload(encoder, CONFIG, FBANK.num_samples, bf16=True).activations < 0.7 * counted.activations
    flops = encoder.feature_flops(True, True)
    assert flops == pytest.approx(encoder.feature_flops(True, False) + encoder.feature_flops(False, True))
    assert counted.flops == pytest.approx(3 * flops)


def test_the_encoder_embeds_spectrograms_of_any_length():
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG).eval()
    fbank = torch.randn(2, 64, 32)
    with torch.no_grad():
        found = encoder.embed(fbank, torch.zeros(2, 1, 3, 32, 32), audio_columns=3)
        torch.testing.assert_close(found.audio, encoder.embed(fbank[:, :24], None).audio)
    assert found.joint is None
    assert encoder.features(fbank, None).shape == (2, encoder.feature_dim)


def test_wrong_settings_name_the_key():
    with pytest.raises(ValueError, match=r"model\.name denseav needs model\.audio\.source"):
        build_encoder(replace(CONFIG, name="denseav"))
    with pytest.raises(ValueError, match="unknown model 'dense_tny'; did you mean dense_tiny"):
        DenseModelConfig(name="dense_tny")
    with pytest.raises(ValueError, match=r"model\.embed_dim 128 must be a multiple of model\.num_heads 3"):
        DenseModelConfig(num_heads=3)
    with pytest.raises(
        ValueError, match=r"multiple of 6, the attention heads of model\.audio_head\.attention"
    ):
        replace(CONFIG, embed_dim=32, audio_head=HeadConfig(attention=True))
    with pytest.raises(ValueError, match="it would stay random"):
        TowerConfig(frozen=True)
    with pytest.raises(ValueError, match=r"scale\.kind is 'bias'"):
        ScaleConfig(kind="bias")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model\.num_mel_bins 60 must be a multiple of 8"):
        DenseModelConfig(num_mel_bins=60)
    with pytest.raises(ValueError, match=r"model\.audio_head has no pool"):
        DenseModelConfig(audio_head=HeadConfig(pool=2))
