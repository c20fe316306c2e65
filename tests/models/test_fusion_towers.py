"""Towers of fusion: what the library computes, alone and among others; refusals; made again without their source."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from support.folders import save_dinov2, save_film, save_text, save_wave  # noqa: E402
from support.objectives import TINY  # noqa: E402
from torchvision.models.video import r3d_18  # noqa: E402

from models import AudioFrontEnd, FbankConfig, build_model, create_config  # noqa: E402
from models.fusion import FusionModelConfig, build_towers, keep_towers, kept_towers, num_frames  # noqa: E402
from models.fusion.config import TextTowerConfig, TowerConfig, VisualTowerConfig  # noqa: E402
from models.pretrained import load_pretrained  # noqa: E402
from models.towers import Sound, TextTower, Tokens, Words  # noqa: E402
from models.towers.text import ByteTower, FolderTextTower  # noqa: E402
from models.weights.description import Description, save_described  # noqa: E402

FBANK = FbankConfig(target_length=64, num_mel_bins=32)
SIZES = {"image_size": 32, "audio_length": 64, "num_mel_bins": 32}
FAMILIES = ("cav_mae", "mavil", "equiav", "cav_mae_sync", "tg_dp", "dense")
TEXTS = ["the film was lovely", None, "awful", "we saw it again and it was good to day"]


def config(**settings: object) -> FusionModelConfig:
    return FusionModelConfig(**{**SIZES, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    save_wave(folder / "wave")
    save_wave(folder / "hubert", "Hubert", feat_extract_norm="layer")
    save_dinov2(folder / "dinov2")
    for kind in ("VideoMAE", "Timesformer"):
        save_film(folder / kind, kind)
    for kind in ("Bert", "Roberta"):
        save_text(folder / kind, kind)
    torch.manual_seed(0)
    torch.save(r3d_18(weights=None).state_dict(), folder / "r3d_18.pth")
    for family in FAMILIES:
        model = create_config(**{**TINY[family]["model"], **SIZES})
        save_described(
            folder / f"{family}.safetensors", build_model(model).state_dict(), Description(model, FBANK)
        )
    return folder


OURS = [f"{family}.safetensors" for family in FAMILIES]
AUDIO = [None, "wave", "hubert", *OURS]
VISUAL = [None, "dinov2", "VideoMAE", "Timesformer", "r3d_18.pth", *OURS]
TEXT = [None, "Bert", "Roberta"]


def inputs(tower: nn.Module, modality: str, count: int) -> list[object]:
    """A batch of four clips of different lengths, and each alone."""
    generator = torch.Generator().manual_seed(0)
    if modality == "text":
        assert isinstance(tower, TextTower)
        return [tower.tokenize(TEXTS), *(tower.tokenize([text]) for text in TEXTS)]
    if modality == "visual":
        pictures = torch.randn(4, count, 3, 32, 32, generator=generator)
        return [pictures, *pictures.split(1)]
    lengths = torch.tensor([FBANK.num_samples, 6000, 4000, 700])
    waveform = torch.randint(-9000, 9000, (4, FBANK.num_samples), generator=generator, dtype=torch.int16)
    whole = Sound.of(AudioFrontEnd(FBANK), waveform, lengths)
    singles = [
        Sound.of(AudioFrontEnd(FBANK), waveform[i : i + 1, :n], lengths[i : i + 1])
        for i, n in enumerate(lengths.tolist())
    ]
    return [whole, *singles]


def padded_otherwise(inputs: object) -> object:
    """The same with other values behind the clips' ends; pictures have no padding."""
    if isinstance(inputs, Words):
        return Words(inputs.ids.where(inputs.mask, 7), inputs.mask)
    if isinstance(inputs, Sound):
        assert inputs.waveform is not None
        assert inputs.num_samples is not None
        inside = torch.arange(inputs.waveform.shape[1]) < inputs.num_samples[:, None]
        return Sound.of(AudioFrontEnd(FBANK), inputs.waveform.where(inside, 12345), inputs.num_samples)
    return inputs


CASES = [("audio", s) for s in AUDIO] + [("visual", s) for s in VISUAL] + [("text", s) for s in TEXT]


@pytest.mark.parametrize(("modality", "source"), CASES, ids=lambda value: str(value))
def test_a_clip_alone_and_among_others_and_without_the_source(
    modality: str, source: str | None, sources: Path, tmp_path: Path
):
    place = None if source is None else str(sources / source)
    settings = {"audio": TowerConfig, "visual": VisualTowerConfig, "text": TextTowerConfig}[modality](
        source=place, width=32
    )
    made = config(modalities=(modality,), **{modality: settings})
    torch.manual_seed(0)
    towers = build_towers(made, FBANK)
    tower = towers[modality].train()
    frames = num_frames(made, tower) if modality == "visual" else 1  # type: ignore[arg-type]
    together, *alone = inputs(tower, modality, frames)
    with torch.no_grad():
        found: Tokens = tower(together)
        assert found.values.shape == (4, torch.tensor(found.grid).prod(), tower.width)
        for row, single in enumerate(alone):
            own: Tokens = tower(single)
            expected = own.values[0][own.mask[0]]
            torch.testing.assert_close(found.values[row][found.mask[row]], expected, atol=1e-5, rtol=0)
            if found.cls is not None and own.cls is not None:
                torch.testing.assert_close(found.cls[row], own.cls[0], atol=1e-5, rtol=0)
        other: Tokens = tower(padded_otherwise(together))
        assert torch.equal(other.values[other.mask], found.values[found.mask])
    assert kept_towers(tmp_path / "kept") == {}
    keep_towers(towers, tmp_path / "kept")
    elsewhere = replace(made, **{modality: replace(settings, source=None if place is None else "/gone")})
    again = build_towers(elsewhere, FBANK, kept_towers(tmp_path / "kept"))[modality]
    again.load_state_dict(tower.state_dict())
    with torch.no_grad():
        same: Tokens = again(together)
    assert torch.equal(same.values[same.mask], found.values[found.mask])
    if isinstance(again, TextTower):
        assert torch.equal(again.tokenize(TEXTS).ids, together.ids)  # type: ignore[attr-defined]


def test_padding_does_not_count_where_an_encoder_gives_one_token(sources: Path):
    source = str(sources / "cav_mae_sync.safetensors")
    tower = build_towers(config(modalities=("audio",), audio=TowerConfig(source=source)), FBANK)["audio"]
    sound = inputs(tower, "audio", 1)[0]
    assert isinstance(sound, Sound)
    with torch.no_grad():
        found = tower(sound).values[:, 0]
        torch.testing.assert_close(found, load_pretrained(source)(sound.waveform, sound.num_samples).audio)
        padded = tower(replace(sound, num_frames=None)).values[:, 0]
    assert torch.equal(padded.isclose(found, atol=1e-5).all(1), torch.tensor([True, False, False, False]))


def test_text_and_films_are_the_librarys(sources: Path):
    words = FolderTextTower.open(sources / "Bert", 16)
    cut = words.tokenize(TEXTS)
    model = transformers.BertModel.from_pretrained(sources / "Bert", add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = model(cut.ids, attention_mask=cut.mask.long()).last_hidden_state
        found = words(cut)
    torch.testing.assert_close(found.values[cut.mask], expected[cut.mask], atol=1e-5, rtol=0)
    assert found.cls is not None
    pictures = torch.randn(2, 4, 3, 32, 32)
    for kind in ("VideoMAE", "Timesformer"):
        tower = build_towers(
            config(modalities=("visual",), visual=VisualTowerConfig(source=str(sources / kind))), FBANK
        )["visual"]
        model = getattr(transformers, f"{kind}Model").from_pretrained(sources / kind).eval()
        with torch.no_grad():
            tokens, expected = tower(pictures), model(pictures).last_hidden_state.mean(1)
        if tokens.cls is None:
            torch.testing.assert_close(tokens.mean(), expected, atol=1e-5, rtol=0)
        else:
            four = tokens.values.sum(1) + tokens.cls
            torch.testing.assert_close(four / 17, expected, atol=1e-5, rtol=0)


def test_r3d_pools_as_torchvision_does(sources: Path):
    tower = build_towers(
        config(modalities=("visual",), visual=VisualTowerConfig(source=str(sources / "r3d_18.pth"))), FBANK
    )["visual"].train()
    model: Any = r3d_18(weights=None).eval()
    model.load_state_dict(torch.load(sources / "r3d_18.pth", weights_only=True))
    model.fc = nn.Identity()
    raw = torch.rand(2, 16, 3, 32, 32)

    def normalised(mean: list[float], std: list[float]) -> Tensor:
        return (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    kinetics = normalised([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989])
    imagenet = normalised([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    before = {name: value.clone() for name, value in tower.state_dict().items() if "running" in name}
    with torch.no_grad():
        torch.testing.assert_close(
            tower(imagenet).mean(), model(kinetics.transpose(1, 2)), atol=1e-4, rtol=1e-4
        )
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in before.items())


def test_what_does_not_fit_is_refused(sources: Path, tmp_path: Path):
    def fails(message: str, **settings: object) -> None:
        (modality,) = settings
        made = config(modalities=(modality,), **settings)
        with pytest.raises(ValueError, match=message):
            build_towers(made, FBANK)

    bare = save_text(tmp_path / "bare", tokenizer=False)
    fails("has no tokenizer .*save_pretrained", text=TextTowerConfig(source=str(bare)))
    shutil.copy(sources / "Roberta" / "tokenizer.json", bare)
    (bare / "tokenizer.json").write_text("{}")
    fails("holds no tokenizer that can be read", text=TextTowerConfig(source=str(bare)))
    fails("does not exist; nothing is downloaded", text=TextTowerConfig(source="bert-base-uncased"))
    fails("holds a bert model; wanted is hubert or wav2vec2", audio=TowerConfig(source=str(sources / "Bert")))
    fails("holds a wav2vec2 model", visual=VisualTowerConfig(source=str(sources / "wave")))
    fails("takes 4: leave frames out", visual=VisualTowerConfig(source=str(sources / "VideoMAE"), frames=8))
    half = {
        k: v for k, v in torch.load(sources / "r3d_18.pth", weights_only=True).items() if "layer2" not in k
    }
    torch.save(half, tmp_path / "half.pth")
    fails("is no whole r3d_18: layer2", visual=VisualTowerConfig(source=str(tmp_path / "half.pth")))
    wide = config(
        modalities=("visual",), image_size=48, visual=VisualTowerConfig(source=str(sources / "VideoMAE"))
    )
    with pytest.raises(ValueError, match=r"takes pictures of 32 pixels: set model\.image_size"):
        build_towers(wide, FBANK)
    theirs = replace(FBANK, mean=-3.0)
    with pytest.raises(ValueError, match=r"trained on other spectrograms; give fbank\.mean=-5\.081"):
        build_towers(
            config(modalities=("audio",), audio=TowerConfig(source=str(sources / "cav_mae.safetensors"))),
            theirs,
        )
    with pytest.raises(ValueError, match="trained on pictures of 32 pixels"):
        build_towers(
            replace(wide, visual=VisualTowerConfig(source=str(sources / "cav_mae.safetensors"))), FBANK
        )


def test_bytes(sources: Path):
    tower = ByteTower(16, 1, 4)
    words = tower.tokenize(["é", None, "abcdef"])
    assert words.ids.tolist()[0] == [257, 0xC3, 0xA9, 256, 256]
    assert words.mask.sum(1).tolist() == [3, 1, 5]
    other = Words(torch.where(words.mask, words.ids, 7), words.mask)
    with torch.no_grad():
        found, same = tower(words), tower(other)
    assert torch.equal(found.values[words.mask], same.values[words.mask])
