"""Published names, both ways and strictly."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.published import load_published
from support.small_models import SMALL, small_model

from models import AudioVisualEncoder, CavMaeModelConfig
from models.classifier import AudioVisualClassifier
from models.weights.errors import WeightsError
from models.weights.initialize import Outcome
from models.weights.published import infer_config, to_published

REFERENCE = Path(__file__).parents[1] / "reference" / "cav_mae_norm_pix.safetensors"
HEADS = {"num_heads": 2, "decoder_num_heads": 4}


@pytest.fixture(params=["pretrain", "finetune"])
def state(request):
    prefix = f"{request.param}."
    return {k.removeprefix(prefix): v for k, v in load_file(REFERENCE).items() if k.startswith(prefix)}


def test_every_key_is_accounted_for(state):
    model, report = load_published(state, **HEADS)
    taken = [entry.source for entry in report.entries]
    assert {f"module.{name}" for name in taken} == set(state)
    assert len(taken) == len(state)
    assert len(report.names(Outcome.loaded)) + len(report.names(Outcome.converted)) == len(model.state_dict())
    assert all(
        re.search(r"^(blocks_[av]|decoder).*norm[12]_", name) for name in report.names(Outcome.ignored)
    )


def test_back_and_forth_is_exact(state):
    model, report = load_published(state, **HEADS)
    assert not isinstance(model, AudioVisualEncoder)
    back = to_published(model)
    assert back.keys() == state.keys()
    never_used = {f"module.{name}" for name in report.names(Outcome.ignored)}
    for name, value in state.items():
        assert back[name].shape == value.shape
        assert name in never_used or torch.equal(back[name], value), name


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_our_models_survive_the_way_out_and_back(kind):
    config = CavMaeModelConfig("cav_mae_tiny", **(SMALL | {"joint_depth": 2, "layer_norm_eps": 1e-5}))
    model = small_model(joint_depth=2) if kind == "mae" else AudioVisualClassifier(config, 5)
    known = {"num_heads": 2, "decoder_num_heads": 2, "num_mel_bins": 32}
    again, _ = load_published(to_published(model), **known)
    assert type(again) is type(model)
    assert isinstance(again.config, CavMaeModelConfig)
    assert again.config.architecture.joint_depth == 2
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_missing_unknown_and_misshapen_keys_are_named(state):
    without = {name: value for name, value in state.items() if not name.endswith("norm_a.weight")}
    with pytest.raises(WeightsError, match=r"norm_a\.weight \(encoder\.norm\.audio\.weight\) is missing"):
        load_published(without, **HEADS)
    with pytest.raises(WeightsError, match="extra in the file has no place"):
        load_published(state | {"extra": torch.zeros(1)}, **HEADS)
    with pytest.raises(WeightsError, match=r"norm_a.weight in the file \(3,\)"):
        load_published(state | {"module.norm_a.weight": torch.zeros(3)}, **HEADS)


def test_what_shapes_do_not_tell_is_asked_for(state):
    with pytest.raises(ValueError, match="num_heads"):
        load_published(state)
    with pytest.raises(ValueError, match=r"patch_embed_v\.proj\.weight is missing"):
        infer_config({"weight": torch.zeros(3)})


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
    assert infer_config(shapes) == CavMaeModelConfig("cav_mae_base", layer_norm_eps=1e-5)
