"""Towers: what the library computes, tokens that do not depend on their neighbours, errors for wrong folders."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import AudioFrontEnd, FbankConfig
from models.towers import AudioTower, Sound, Tokens
from models.towers.conv import ConvAudioTower, ConvVisualTower
from models.towers.folders import PictureTower, WaveTower

transformers = pytest.importorskip("transformers")

FRONT_END = AudioFrontEnd(FbankConfig(target_length=60))
WAVE = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (40, 4, 2), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def save_wave(folder: Path, kind: str, **settings: object) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**WAVE, **settings)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path, patch_size: int = 14) -> Path:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=patch_size
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def sounds(*lengths: int) -> Sound:
    """Noise of the given lengths, padded to 9840 samples with what must not be heard."""
    generator = torch.Generator().manual_seed(1)
    waveform = (3000 * torch.randn(len(lengths), 9840, generator=generator)).to(torch.int16)
    return Sound.of(FRONT_END, waveform, torch.tensor(lengths))


def alone(sound: Sound, row: int) -> Sound:
    """One clip by itself, cut at its end."""
    assert sound.waveform is not None
    assert sound.num_samples is not None
    assert sound.fbank is not None
    assert sound.num_frames is not None
    length = int(sound.num_samples[row])
    waveform = sound.waveform[row : row + 1, :length]
    count = int(sound.num_frames[row])
    return Sound(
        waveform, sound.num_samples[row : row + 1], sound.fbank[row : row + 1, :count], torch.tensor([count])
    )


def check_no_neighbours(tower: AudioTower, lengths: tuple[int, ...]) -> None:
    sound = sounds(*lengths)
    with torch.no_grad():
        together: Tokens = tower(sound)
        for row in range(len(lengths)):
            single: Tokens = tower(alone(sound, row))
            assert single.mask.all()
            own = together.values[row][together.mask[row]]
            torch.testing.assert_close(own, single.values[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.mean()[row], single.mean()[0], atol=1e-5, rtol=0)
    assert together.values.shape == (len(lengths), together.grid[0], tower.width)


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2"])
@pytest.mark.parametrize("settings", [{}, LAYER_NORM], ids=["group", "layer"])
def test_wave_towers_are_the_librarys_and_know_no_neighbours(tmp_path, kind, settings):
    tower = WaveTower.open(save_wave(tmp_path, kind, **settings))
    sound = sounds(9840, 5000, 3123, 700)
    check_no_neighbours(tower, (9840, 5000, 3123, 700))
    model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor()
    for row in range(4):
        waveform = alone(sound, row).waveform
        assert waveform is not None
        wave = waveform[0].float() / 32768
        with torch.no_grad():
            expected = model(extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values)
            found = tower(sound)
        own = found.values[row][found.mask[row]]
        torch.testing.assert_close(own, expected.last_hidden_state[0], atol=1e-4, rtol=0)


def test_training_mode_changes_nothing(tmp_path):
    tower = WaveTower.open(save_wave(tmp_path, "Hubert")).train()
    torch.testing.assert_close(tower(sounds(5000)).values, tower(sounds(5000)).values, atol=0, rtol=0)
    tower(sounds(9840, 700)).mean().sum().backward()
    assert all(p.grad is not None for p in tower.parameters() if p.requires_grad)


def test_a_clip_too_short_for_a_token_gives_one(tmp_path):
    tower = WaveTower.open(save_wave(tmp_path, "Hubert"))
    found = tower(sounds(3, 5000))
    assert found.mask[0].sum() == 1
    assert torch.isfinite(found.values).all()


def test_dinov2_is_the_librarys(tmp_path):
    tower = PictureTower.open(save_dinov2(tmp_path))
    pictures = torch.randn(2, 3, 3, 42, 28, generator=torch.Generator().manual_seed(0))
    model = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found, expected = tower(pictures), model(pictures[:, 1]).last_hidden_state
    assert found.grid == (3, 3, 2)
    assert found.cls is not None
    assert found.cls.shape == (2, 24)
    torch.testing.assert_close(found.values[:, 6:12], expected[:, 1:], atol=1e-5, rtol=0)
    assert all(p.requires_grad for name, p in tower.named_parameters() if "mask_token" not in name)


def test_pictures_are_normalised_as_the_folder_says(tmp_path):
    folder = save_dinov2(tmp_path)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    raw = torch.rand(1, 1, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    def normalized(mean: list[float], std: list[float]) -> Tensor:
        return (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    tower = PictureTower.open(folder)
    ours = normalized([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = normalized(settings["image_mean"], settings["image_std"])
    torch.testing.assert_close(tower.normalize(ours), expected)


def test_pictures_of_other_sizes_than_patches_are_refused(tmp_path):
    tower = PictureTower.open(save_dinov2(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"96 pixels can.t be cut in the backbone.s patches of 14: set model\.image_size to a multiple of 14",
    ):
        tower(torch.zeros(1, 1, 3, 96, 96))


@pytest.mark.parametrize("lengths", [(9840, 5000, 3123, 400), (400,), (9840,)])
def test_conv_audio_tower_knows_no_neighbours(lengths):
    torch.manual_seed(0)
    check_no_neighbours(ConvAudioTower(16, 2, 128), lengths)


def test_conv_towers_grids():
    torch.manual_seed(0)
    found = ConvVisualTower(16, 1)(torch.randn(2, 3, 3, 40, 24))
    assert found.grid == (3, 5, 3)
    assert found.values.shape == (2, 45, 16)
    sound = ConvAudioTower(16, 1, 128)(sounds(9840, 2000))
    assert sound.grid == (8,)  # 60 frames
    assert sound.mask.sum(1).tolist() == [8, 2]  # 11 frames


def test_towers_say_what_form_of_sound_they_miss(tmp_path):
    tower = WaveTower.open(save_wave(tmp_path, "Hubert"))
    with pytest.raises(ValueError, match="hears waveforms"):
        tower(Sound(fbank=torch.zeros(1, 60, 128), num_frames=torch.tensor([60])))
    with pytest.raises(ValueError, match="hears spectrograms"):
        ConvAudioTower(16, 1, 128)(Sound(torch.zeros(1, 9840), torch.tensor([9840])))


def test_wrong_folders(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no config\.json with a model_type; wanted is a folder of hubert"
    ):
        WaveTower.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds a dinov2 model; wanted is a folder of hubert or wav2vec2"):
        WaveTower.open(save_dinov2(tmp_path / "pictures"))
    with pytest.raises(ValueError, match="holds a hubert model; wanted is a folder of dinov2"):
        PictureTower.open(save_wave(tmp_path / "sounds", "Hubert"))
    (tmp_path / "sounds" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        WaveTower.open(tmp_path / "sounds")
    (tmp_path / "pictures" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="can't be read as JSON"):
        PictureTower.open(tmp_path / "pictures")


def test_missing_weights_are_refused_not_drawn(tmp_path):
    from safetensors.torch import load_file, save_file

    file = save_wave(tmp_path, "Hubert") / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "layers.1" in name)
    save_file({name: x for name, x in tensors.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks weights of the model, such as {lost}"):
        WaveTower.open(tmp_path)
