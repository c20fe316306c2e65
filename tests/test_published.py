"""Published names, both ways and strictly."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import SMALL, small_model

from models import ModelConfig
from models.classifier import AudioVisualClassifier
from models.errors import UnsafeFileError
from models.published import infer_config, load_published, read_tensors, to_published

REFERENCE = Path(__file__).parent / "reference" / "cav_mae_norm_pix.safetensors"
HEADS = {"num_heads": 2, "decoder_num_heads": 4}


@pytest.fixture(params=["pretrain", "finetune"])
def state(request):
    prefix = f"{request.param}."
    return {k.removeprefix(prefix): v for k, v in load_file(REFERENCE).items() if k.startswith(prefix)}


def test_every_key_is_accounted_for(state):
    _, report = load_published(state, **HEADS)
    assert {f"module.{name}" for name in report.used + report.unused} == set(state)
    assert not set(report.used) & set(report.unused)
    assert all("norm1_" in name or "norm2_" in name for name in report.unused)
    assert not any(name.startswith("blocks_u") for name in report.unused)


def test_back_and_forth_is_exact(state):
    model, report = load_published(state, **HEADS)
    back = to_published(model)
    assert back.keys() == state.keys()
    for name in report.used:
        assert torch.equal(back[f"module.{name}"], state[f"module.{name}"]), name
    for name in report.unused:
        assert back[f"module.{name}"].shape == state[f"module.{name}"].shape


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_our_models_survive_the_way_out_and_back(kind):
    config = ModelConfig("cav_mae_tiny", **(SMALL | {"joint_depth": 2, "layer_norm_eps": 1e-5}))
    model = small_model(joint_depth=2) if kind == "mae" else AudioVisualClassifier(config, 5)
    known = {"num_heads": 2, "decoder_num_heads": 2, "num_mel_bins": 32}
    again, report = load_published(to_published(model), **known)
    assert report.num_classes == (None if kind == "mae" else 5)
    assert report.config.architecture.joint_depth == 2
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_files_with_and_without_prefix(state, tmp_path):
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    save_file(bare, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    first, _ = load_published(tmp_path / "a.safetensors", **HEADS)
    second, _ = load_published(tmp_path / "a.pth", **HEADS)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_loading_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"module.norm.weight": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UnsafeFileError, match="refused"):
        load_published(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth"):
        read_tensors(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"patch_embed_v\.proj\.weight is missing"):
        load_published({"weight": torch.zeros(3)})


def test_missing_unknown_and_misshapen_keys_are_named(state):
    without = {name: value for name, value in state.items() if not name.endswith("norm_a.weight")}
    with pytest.raises(ValueError, match=r"missing \['norm_a.weight'\]"):
        load_published(without, **HEADS)
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        load_published(state | {"extra": torch.zeros(1)}, **HEADS)
    with pytest.raises(ValueError, match=r"norm_a.weight has shape \(3,\)"):
        load_published(state | {"module.norm_a.weight": torch.zeros(3)}, **HEADS)


def test_heads_that_shapes_do_not_tell_are_asked_for(state):
    with pytest.raises(ValueError, match="num_heads"):
        load_published(state)


def test_config_of_a_published_vit_b_is_the_preset():
    with torch.device("meta"):
        shapes = {
            "patch_embed_v.proj.weight": torch.empty(768, 3, 16, 16),
            "pos_embed_v": torch.empty(1, 196, 768),
            "pos_embed_a": torch.empty(1, 512, 768),
            "decoder_embed.weight": torch.empty(512, 768),
            "blocks_u.0.mlp.fc1.weight": torch.empty(3072, 768),
        }
        shapes |= {f"blocks_a.{i}.norm1.bias": torch.empty(768) for i in range(11)}
        shapes |= {f"decoder_blocks.{i}.norm1.bias": torch.empty(512) for i in range(8)}
    assert infer_config(shapes) == ModelConfig("cav_mae_base", layer_norm_eps=1e-5)
