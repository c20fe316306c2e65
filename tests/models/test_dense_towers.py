"""Towers of dense grounding from our own encoders, and low-rank updates of trained towers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.dense import clips
from support.objectives import TINY

from engine.ground.grounder import Grounder
from engine.objectives.dense import Dense, DenseConfig
from models import FbankConfig, build_model, create_config
from models.dense.config import DenseModelConfig, TowerConfig
from models.dense.model import DenseModel
from models.pretrained import load_pretrained
from models.towers.earsight import EncoderAudioTower
from models.towers.lora import LoraConfig
from models.weights.description import Description, save_described

FBANK = FbankConfig(target_length=64, num_mel_bins=32)
SIZES: dict[str, Any] = {"image_size": 32, "audio_length": 64, "num_mel_bins": 32}
QKV = LoraConfig(rank=2, alpha=4.0, layers=("qkv",))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of very small models of several families."""
    folder, found = tmp_path_factory.mktemp("exports"), {}
    for family in ("cav_mae", "equiav", "mavil"):
        torch.manual_seed(0)
        model = create_config(**{**TINY[family]["model"], **SIZES})
        found[family] = folder / f"{family}.safetensors"
        save_described(found[family], build_model(model).state_dict(), Description(model, FBANK))
    return found


def dense(source: Path, **tower: Any) -> DenseModelConfig:
    setting = TowerConfig(source=str(source), **tower)
    return DenseModelConfig(**SIZES, audio=setting, visual=setting, embed_dim=16, num_heads=2)


def objective(config: DenseModelConfig, fbank: FbankConfig = FBANK) -> Dense:
    torch.manual_seed(1)
    return Dense(DenseModel(config), fbank, DenseConfig())


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ValueError, match="holds an adapter to a model, not the model"):
        objective(dense(tmp_path))


@pytest.mark.parametrize("family", ["cav_mae", "equiav"])
def test_tokens_are_those_of_the_encoder(exports, family, tmp_path):
    found = objective(dense(exports[family]))
    batch = clips(2)
    assert batch.waveform is not None
    alone = load_pretrained(exports[family]).encoder
    sound, frames = found.inputs(batch)
    encoder = found.model.encoder
    assert isinstance(encoder.audio_tower, EncoderAudioTower)
    torch.testing.assert_close(encoder.visual_tower(frames).values, alone.frame_tokens(frames).values)
    torch.testing.assert_close(
        encoder.audio_tower.encoder.sound_tokens(sound).values, alone.sound_tokens(sound).values
    )
    assert found.tokens(batch).grid == (2, 2)
    found(batch)["loss"].backward()
    for tower in (encoder.audio_tower, encoder.visual_tower):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())
    path = tmp_path / "run.safetensors"
    save_described(path, found.model.state_dict(), Description(found.model.config, FBANK))
    grounder = Grounder.open(path)
    pictures = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    waveform = batch.waveform[0]
    heat = grounder.heat_of(waveform, pictures)
    assert heat.shape == (3, 2, 2)
    for one, picture in zip(heat, pictures, strict=True):
        torch.testing.assert_close(grounder.heat_of(waveform, picture[None])[0], one)


def test_encoders_that_do_not_fit(exports):
    cases = {
        "takes 2 frames together": dense(exports["mavil"]),
        "set model.image_size to it, which is 64": replace(dense(exports["cav_mae"]), image_size=64),
        "no such file": dense(Path("nowhere")),
    }
    for message, config in cases.items():
        with pytest.raises(ValueError, match=message):
            objective(config)
    with pytest.raises(ValueError, match=r"trained on other spectrograms; give fbank\.mean=-5\.081"):
        objective(dense(exports["cav_mae"]), replace(FBANK, mean=-4.0))


def test_low_rank_updates_alone_are_trained_and_saved(exports, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    batch = clips(4)
    plain, updated = (
        objective(dense(exports["cav_mae"])).eval(),
        objective(dense(exports["cav_mae"], lora=QKV)).eval(),
    )
    with torch.no_grad():  # B is zero at the start
        torch.testing.assert_close(
            updated.model.encoder.audio_tower(sound(updated, batch)).values,
            plain.model.encoder.audio_tower(sound(plain, batch)).values,
        )
    towers = {name: p for name, p in updated.model.named_parameters() if "_tower." in name}
    trained = {name for name, p in towers.items() if p.requires_grad}
    assert trained == {name for name in towers if "lora_" in name}
    assert trained
    before = {name: p.detach().clone() for name, p in towers.items()}
    optimizer = torch.optim.AdamW([p for p in updated.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        updated(batch)["loss"].backward()
        optimizer.step()
    moved = {name for name, p in towers.items() if not torch.equal(p, before[name])}
    assert moved <= trained
    assert any("audio_tower" in name for name in moved)
    assert any("visual_tower" in name for name in moved)
    path = tmp_path / "run.safetensors"
    save_described(path, updated.model.state_dict(), Description(updated.model.config, FBANK))
    opened = Grounder.open(path).model.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in updated.model.state_dict().items())


def sound(found: Dense, batch: Any) -> Any:
    from models.towers import Sound

    return Sound.of(found.audio_front_end, batch.waveform, batch.num_samples)


def test_low_rank_updates_that_can_not_be(exports, monkeypatch):
    source = str(exports["cav_mae"])
    with pytest.raises(ValueError, match="rank is 4 and layers \\[\\]; give both"):
        LoraConfig(rank=4)
    for tower in ({"source": None}, {"source": source, "frozen": True}):
        with pytest.raises(ValueError, match="lora trains updates to the weights of a tower's source"):
            TowerConfig(lora=QKV, **tower)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"model\.audio\.lora needs peft: pip install -e '\.\[lora\]'"):
        objective(dense(Path(source), lora=QKV))
    monkeypatch.undo()
    pytest.importorskip("peft", reason="peft is not installed")
    wrong = replace(QKV, layers=("qkv", "query"))
    with pytest.raises(
        ValueError,
        match=r"model\.audio\.lora\.layers: no linear layer's name ends in 'query'; there are .*qkv",
    ):
        objective(dense(Path(source), lora=wrong))
