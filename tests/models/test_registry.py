"""Models by name, and configs that cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from support.small_models import SMALL, inputs, small_model

from models import (
    CavMaeModelConfig,
    MaskConfig,
    MaskStrategy,
    build_model,
    create_model,
    family_of,
    list_models,
    parameter_count,
    register_family,
    training_flops,
)
from models.cav_mae.config import PRESETS


def test_every_preset_is_a_model_of_its_name():
    assert set(PRESETS) <= set(list_models())
    assert create_model("cav_mae_tiny").config == CavMaeModelConfig("cav_mae_tiny")


@pytest.mark.parametrize("name", ["cav_mae_bas", "cav-mae-base", "CAV_MAE_BASE"])
def test_unknown_name_is_named_with_the_nearest(name):
    with pytest.raises(ValueError, match=f"unknown model '{name}'.*cav_mae_base"):
        create_model(name)
    with pytest.raises(ValueError, match=f"unknown model '{name}'"):
        CavMaeModelConfig(name)


def test_unknown_override_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"'embed_dims'.*embed_dim"):
        create_model("cav_mae_tiny", embed_dims=64)


def test_every_width_and_depth_can_be_overridden():
    model = small_model(joint_depth=2, mlp_ratio=2.0)
    assert len(model.encoder.joint_blocks) == 2
    assert len(model.encoder.audio.blocks) == 2
    assert model.get_parameter("encoder.audio.blocks.0.mlp.fc1.weight").shape == (64, 32)
    assert model.decoder.embed.weight.shape == (16, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 225}, "image_size is 225"),
        ({"audio_length": 1000}, "audio_length is 1000"),
        ({"num_mel_bins": 100}, "num_mel_bins is 100"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_heads": 5}, "embed_dim 768 must be a multiple of num_heads 5"),
        ({"decoder_num_heads": 7}, "decoder_embed_dim 512 must be a multiple of decoder_num_heads 7"),
        ({"embed_dim": 6, "num_heads": 2}, "embed_dim is 6"),
        ({"modality_depth": -1}, "modality_depth is -1"),
        ({"decoder_depth": 0}, "decoder_depth is 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"mask": MaskConfig(audio_ratio=0.999)}, "mask.audio_ratio 0.999 leaves no audio token"),
    ],
)
def test_impossible_sizes_are_named(overrides: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        CavMaeModelConfig(**overrides)


@pytest.mark.parametrize(
    ("setting", "value"), [("audio_ratio", 1.2), ("visual_ratio", -0.1), ("audio_strategy", "tine")]
)
def test_impossible_masks_are_named(setting, value):
    with pytest.raises(ValueError, match=f"mask.{setting} is '?{value}"):
        MaskConfig(**{setting: value})


def test_config_comes_out_of_yaml(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  name: cav_mae_tiny\n  embed_dim: 96\n  mask: {audio_strategy: time}\n")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--model", type=CavMaeModelConfig, default=CavMaeModelConfig())
    parsed = parser.instantiate(parser.parse_args([f"--config={path}", "--model.num_heads=2"]))
    expected = CavMaeModelConfig(
        "cav_mae_tiny", embed_dim=96, num_heads=2, mask=MaskConfig(audio_strategy=MaskStrategy.time)
    )
    assert parsed["model"] == expected


def test_build_model_is_create_model_of_the_config():
    config = CavMaeModelConfig("cav_mae_tiny", **SMALL)
    assert build_model(config).config == config


def test_training_flops_of_the_published_setting():
    # ViT-B, 128 + 49 tokens kept of 512 + 196, three streams through the joint block.
    assert training_flops(CavMaeModelConfig()) == pytest.approx(206.2e9, rel=1e-3)
    without = training_flops(CavMaeModelConfig(), contrast=False)
    one_block_of_177_tokens = 3 * 2 * 177 * 12 * 768**2
    assert training_flops(CavMaeModelConfig()) - without == pytest.approx(one_block_of_177_tokens)


def test_training_flops_count_the_linear_layers_that_run():
    model = small_model(joint_depth=2)
    products = 0

    def count(module, args, _):
        nonlocal products
        products += args[0].numel() // args[0].shape[-1] * module.weight.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    model(*inputs(model.config, batch=1))
    assert training_flops(model.config) == 6 * products


def test_parameter_count():
    model = small_model()
    assert parameter_count(model) == sum(p.numel() for p in model.parameters())
    model.decoder.requires_grad_(False)
    assert parameter_count(model) == parameter_count(model.encoder)
    assert parameter_count(model, trainable_only=False) > parameter_count(model)


def test_a_name_can_be_registered_once():
    family = family_of("cav_mae_tiny")
    with pytest.raises(ValueError, match="'cav_mae' is registered already"):
        register_family(family)
    with pytest.raises(ValueError, match="model 'cav_mae_base' is registered already, by 'cav_mae'"):
        register_family(replace(family, name="other", presets={"cav_mae_base": "again"}))
