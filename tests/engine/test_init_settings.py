"""Fine-tuning takes the model and its spectrograms from the weights it starts from; given keys win."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from engine.checkpoints.folder import Checkpoint, CheckpointState
from engine.config import PretrainConfig, parse_config
from engine.tasks.finetune_config import FinetuneConfig
from engine.training.changes import check_settings
from models import CavMaeModelConfig, FbankConfig, create_model, load_pretrained
from models.convert import save_published
from models.export.formats import export
from models.weights.tensor_files import write_safetensors

MODEL = ["model.name=cav_mae_tiny", "model.image_size=32", "model.audio_length=64", "model.patch_size=8"]
WORDS = ["data.train=shards", *MODEL, "fbank.mean=-4.25", "fbank.std=3.5"]


def make_run(folder: Path, *words: str) -> Path:
    """A run's folder with one checkpoint, as pretraining leaves it."""
    config, text = parse_config(PretrainConfig, "test", [*WORDS, *words, f"output_dir={folder}"])
    checkpoint = folder / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    state = create_model(
        config.model.name, image_size=32, audio_length=config.model.audio_length, patch_size=8
    ).state_dict()
    write_safetensors(checkpoint / "model.safetensors", state)
    for path in (folder, checkpoint):
        (path / "config.yaml").write_text(text)
    (checkpoint / "state.json").write_text('{"step": 2}')
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("init") / "run")


def parse(*words: str) -> FinetuneConfig:
    return parse_config(FinetuneConfig, "main_finetune.py", ["data.train=shards", *words])[0]


def test_a_run_an_export_and_an_averaged_file_tell_their_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export(str(run), tmp_path / "exported", "earsight")
    capsys.readouterr()
    for source in (run, run / "checkpoints" / "step_00000002", tmp_path / "exported"):
        config = parse(f"init={source}")
        assert isinstance(config.model, CavMaeModelConfig)
        assert (config.model.name, config.model.image_size, config.model.patch_size) == (
            "cav_mae_tiny",
            32,
            8,
        )
        assert (config.fbank.mean, config.fbank.std, config.fbank.target_length) == (-4.25, 3.5, 64)
        note = capsys.readouterr().err
        assert f"from init {source}: " in note
        assert all(
            word in note for word in ("model.name=cav_mae_tiny", "model.patch_size=8", "fbank.mean=-4.25")
        )


def test_a_published_file_tells_its_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(
        "cav_mae_small", image_size=32, audio_length=64, layer_norm_eps=1e-5, embed_dim=64, num_heads=1,
        decoder_embed_dim=32, decoder_num_heads=1, decoder_depth=1, modality_depth=1,
    )  # fmt: skip
    save_published(model, tmp_path / "published.pth")
    config = parse(f"init={tmp_path}/published.pth")
    assert config.model == load_pretrained(tmp_path / "published.pth").config
    assert replace(config.fbank, target_length=1024) == FbankConfig()


def test_given_keys_win(run: Path, tmp_path: Path) -> None:
    config = parse(f"init={run}", "model.audio_length=128", "fbank.mean=-1")
    assert (config.model.name, config.model.audio_length, config.fbank.target_length) == (
        "cav_mae_tiny",
        128,
        128,
    )
    assert (config.fbank.mean, config.fbank.std) == (-1, 3.5)
    (tmp_path / "recipe.yaml").write_text(f"init: {run}\nmodel:\n  image_size: 64\nfbank.std: 2.0\n")
    config = parse("--config", str(tmp_path / "recipe.yaml"))
    assert (config.model.image_size, config.model.audio_length, config.fbank.std) == (64, 64, 2.0)


def test_another_model_has_its_own_settings(run: Path) -> None:
    config = parse(f"init={run}", "model.name=mavil_tiny")
    assert config.model == parse("model.name=mavil_tiny").model
    assert config.fbank.mean == -4.25


def test_a_family_is_told_by_init_too(tmp_path: Path) -> None:
    _, text = parse_config(
        PretrainConfig,
        "test",
        ["data.train=x", "objective.kind=mavil", "model.name=mavil_tiny", "model.frames=4"],
    )
    (tmp_path / "config.yaml").write_text(text)
    write_safetensors(tmp_path / "model.safetensors", {"encoder.audio.patch_embed.weight": torch.zeros(1)})
    config = parse(f"init={tmp_path}")
    assert (config.model.name, getattr(config.model, "frames", None)) == ("mavil_tiny", 4)


def test_without_init_there_are_the_defaults() -> None:
    assert parse().model.name == "cav_mae_base"
    assert parse("init=null", "model.name=cav_mae_tiny").model.name == "cav_mae_tiny"


def test_pretraining_takes_nothing_from_init(run: Path) -> None:
    config, _ = parse_config(PretrainConfig, "test", ["data.train=shards", f"init={run}"])
    assert config.model.name == "cav_mae_base"


def test_a_run_that_has_begun_needs_init_no_more(tmp_path: Path) -> None:
    source, run = make_run(tmp_path / "source"), tmp_path / "finetune"
    words = ["data.train=shards", f"init={source}", f"output_dir={run}"]
    before, text = parse_config(FinetuneConfig, "test", words)
    run.mkdir()
    (run / "config.yaml").write_text(text)
    source.rename(tmp_path / "moved")
    assert parse_config(FinetuneConfig, "test", words)[0] == before


def test_an_init_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        parse(f"init={tmp_path}/absent")
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in ("init: ", "absent", "model.name")), message
    assert parse(f"init={tmp_path}/absent", "model.name=cav_mae_tiny").model.name == "cav_mae_tiny"


# --- configs of commit 49a4139 -------------------------------------------------------------------------------------

EARLIER = Path(__file__).parent / "earlier" / "config_49a4139.yaml"


def test_a_renamed_key_says_what_to_write_now(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for words in (["--config", str(EARLIER)], ["data.train=x", "optimizer.decoupled=false"]):
        with pytest.raises(SystemExit):
            parse_config(PretrainConfig, "main_pretrain.py", words)
        message = capsys.readouterr().err
        assert "optimizer.decoupled has another name now" in message, message
        assert "optimizer.kind" in message
        assert "adam" in message
    text = EARLIER.read_text().replace("decoupled: false", "kind: adam")
    (tmp_path / "now.yaml").write_text(text.replace("halve_from_epoch: null", "halve_from_epoch: 10"))
    with pytest.raises(SystemExit):
        parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(tmp_path / "now.yaml")])
    assert "schedule.kind=halving" in capsys.readouterr().err
    (tmp_path / "now.yaml").write_text(text)
    config, _ = parse_config(PretrainConfig, "main_pretrain.py", ["--config", str(tmp_path / "now.yaml")])
    assert (config.objective.kind, config.optimizer.kind) == ("cav_mae", "adam")


def test_a_checkpoint_of_the_earlier_version_resumes(tmp_path: Path) -> None:
    old = yaml.safe_load(EARLIER.read_text())["model"]
    words = [
        f"model.{key}={old[key]}"
        for key in ("name", "image_size", "audio_length", "decoder_embed_dim", "decoder_depth")
    ]
    _, text = parse_config(PretrainConfig, "test", ["data.train=x", *words, "optimizer.kind=adam"])
    (tmp_path / "config.yaml").write_text(EARLIER.read_text())
    before = Checkpoint(tmp_path, CheckpointState(4, 1, 0, "2", "0"))
    assert "optimizer.kind: None → adam" in check_settings(before, text)
