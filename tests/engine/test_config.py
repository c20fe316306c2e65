"""The config: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine.config import PretrainConfig, parse_config
from models import CavMaeModelConfig, MaskConfig

ROOT = Path(__file__).resolve().parents[2]


def mask(config: PretrainConfig) -> MaskConfig:
    assert isinstance(config.model, CavMaeModelConfig)
    return config.model.mask


def parse(*words: str) -> PretrainConfig:
    return parse_config(PretrainConfig, "main_pretrain.py", ["data.train=shards", *words])[0]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["trian.steps=3"], ["trian.steps", "did you mean train.steps"]),
        (["optimizer.l=3"], ["optimizer.l=3", "did you mean optimizer.lr"]),
        (["model.mask.audio_ratio=1.2"], ["mask.audio_ratio", "1.2"]),
        (["model.mask.visual_ratio=0"], ["model.mask.visual_ratio", "nothing to reconstruct"]),
        (["train.steps=many"], ["train.steps", "many"]),
        (["train.steps=0"], ["train.steps"]),
        (["model.audio_length=1000"], ["audio_length", "1000", "patch_size"]),
        (["model.name=cav_mae_bse"], ["cav_mae_bse", "cav_mae_base"]),
        (["objective.kind=cav_ma"], ["unknown objective.kind 'cav_ma'", "did you mean cav_mae"]),
        (["objective.momentum=0.9"], ["objective.momentum"]),  # another kind's
        (["objective.negatives=some"], ["objective.negatives", "some"]),
        (["objective.contrast_weight=0", "objective.reconstruction_weight=0"], ["both 0"]),
        (["optimizer.lr=-1"], ["optimizer.lr"]),
        (["data.num_workers=-1"], ["data.num_workers"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
    ],
)
def test_wrong_settings_are_named(words: list[str], names: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in names), message
    assert len(message.splitlines()) < 12


def test_three_ways_to_override() -> None:
    config = parse("train.steps=3", "--optimizer.lr", "0.5", "--model.mask.audio_ratio=0.5")
    assert (config.train.steps, config.optimizer.lr, mask(config).audio_ratio) == (3, 0.5, 0.5)


def test_the_spectrogram_has_the_models_size() -> None:
    config = parse("model.audio_length=304")
    assert config.fbank.target_length == 304


def test_the_resolved_config_reads_back(tmp_path: Path) -> None:
    arguments = [
        "data.train=shards",
        "model.audio_length=304",
        "schedule.kind=halving",
        "schedule.halve_from_epoch=10",
    ]
    config, text = parse_config(PretrainConfig, "main_pretrain.py", arguments)
    (tmp_path / "config.yaml").write_text(text)
    again, _ = parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(tmp_path / "config.yaml")])
    assert again == config


def test_several_training_sets(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = parse("data.train=[{path: a, weight: 3}, {path: b}]")
    assert [(part.path, part.weight) for part in config.data.train_sets] == [("a", 3.0), ("b", 1.0)]
    assert [part.path for part in parse().data.train_sets] == ["shards"]
    arguments = ["data.train=[{path: a, weight: 3}, {path: b}]"]
    text = parse_config(PretrainConfig, "main_pretrain.py", arguments)[1]
    (tmp_path / "config.yaml").write_text(text)
    again, _ = parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(tmp_path / "config.yaml")])
    assert again == config
    for wrong, names in (
        ("[{path: a, weight: 0}, {path: b, weight: 0}]", ["data.train", "sum to 0"]),
        ("[{path: a}, {path: ./a}]", ["data.train names one set twice", "a and ./a"]),
        ("[{path: a, wieght: 2}]", ["wieght"]),
        ("[{path: a, weight: -1}]", ["the weight of a is -1"]),
    ):
        with pytest.raises(SystemExit):
            parse(f"data.train={wrong}")
        message = capsys.readouterr().err
        assert all(name in message for name in names), message


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text("data:\n  train: x\ntrain:\n  stps: 3\n")
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(tmp_path / "a.yaml")])
    assert "stps" in capsys.readouterr().err


PRETRAINING = [
    "pretrain_cav_mae_tiny",
    "pretrain_cav_mae_base",
    "audioset_cav_mae_scale_plus_plus",
    "vggsound_cav_mae",
]


@pytest.mark.parametrize("name", PRETRAINING)
def test_recipes_resolve(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    config = parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(path)])[0]
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Source" in line for line in header)
    assert any("Expected result" in line for line in header)
    if name != "pretrain_cav_mae_tiny":
        assert any("Not run here" in line for line in header)
        assert mask(config).audio_ratio == mask(config).visual_ratio == 0.75


def test_the_published_hyper_parameters_of_scale_plus_plus() -> None:
    path = ROOT / "configs" / "audioset_cav_mae_scale_plus_plus.yaml"
    recipe = yaml.safe_load(path.read_text())
    assert recipe["train"]["parallel"]["global_batch_size"] == 256
    assert recipe["train"]["epochs"] == 25
    assert recipe["optimizer"] == {
        "lr": 2e-4,
        "betas": [0.95, 0.999],
        "weight_decay": 5e-7,
        "kind": "adam",
    }
    assert recipe["schedule"] == {"kind": "halving", "halve_from_epoch": 10, "halve_every_epochs": 5}
    assert recipe["objective"] == {"contrast_weight": 0.01, "temperature": 0.05}
    assert recipe["fbank"] == {"mean": -5.081, "std": 4.4849}
