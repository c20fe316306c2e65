"""EquiAV's weights in and out: published files, ImageNet starts, exports, features for a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.sources import mae_state

from models import AudioVisualClassifier, EquiAv, EquiAvModelConfig, FbankConfig, load_pretrained
from models.convert import main as convert
from models.equiav.published import infer_config
from models.export import program
from models.export.timm import export_timm
from models.weights.description import Description, save_described
from models.weights.errors import WeightsError
from models.weights.initialize import Outcome, initialize
from models.weights.sources import read_weights

REFERENCE = Path(__file__).parents[1] / "reference" / "equiav_a.safetensors"
WORDS = ["num_heads=2", "predictor_heads=8"]
SMALL = {"image_size": 32, "audio_length": 64, "num_mel_bins": 32, "embed_dim": 32, "num_heads": 4}


def small(**overrides: Any) -> EquiAv:
    torch.manual_seed(0)
    sizes: dict[str, Any] = SMALL | {"modality_depth": 2} | overrides
    return EquiAv(EquiAvModelConfig("equiav_tiny", **sizes))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    state = {k.replace("pretrain.", "module.", 1): v for k, v in load_file(REFERENCE).items()}
    state = {name: value for name, value in state.items() if name.startswith("module.")}
    torch.save(state, tmp_path / "equiav.pth")
    return tmp_path / "equiav.pth"


@torch.no_grad()
def test_a_published_file_there_and_back(published, tmp_path):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    convert([str(published), str(ours), "--set", *WORDS])
    convert([str(ours), str(back), "--format", "published"])
    given, found = (torch.load(path, weights_only=True) for path in (published, back))
    assert found.keys() == given.keys()
    for name in given:
        if "patch_embed_a.proj.weight" in name:
            torch.testing.assert_close(found[name].sum(1), given[name].sum(1))
        elif not name.rsplit(".", 1)[0].endswith(("norm1_a", "norm1_v", "norm2_a", "norm2_v")):
            assert torch.equal(found[name], given[name]), name
    encoders = load_pretrained(ours)
    frames = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    vectors = encoders(torch.randint(-8000, 8000, (3, 9000), dtype=torch.int16), frames=frames)
    assert vectors.joint is not None
    assert vectors.joint.shape == (3, 32)


def test_heads_that_shapes_do_not_tell_are_asked_for(published):
    with pytest.raises(WeightsError, match=r"num_heads cannot be told .*give num_heads="):
        read_weights(published).model_config()
    with pytest.raises(ValueError, match=r"patch_embed_v.proj.weight is missing"):
        infer_config({})


def test_a_published_file_into_another_family_says_what_it_is(published, tmp_path):
    with pytest.raises(SystemExit):
        convert([str(published), str(tmp_path / "x.safetensors"), "--set", "depth=3"])


def test_an_imagenet_mae_starts_both_towers(tmp_path):
    vit = mae_state()
    torch.save({"model": vit}, tmp_path / "mae.pth")
    model = small(modality_depth=3)
    report = initialize(model, read_weights(tmp_path / "mae.pth"))
    anew = set(report.names(Outcome.anew))
    assert {name for name in anew if name.startswith("encoder.")} == {
        "encoder.audio.modality_embed",
        "encoder.visual.modality_embed",
    }
    assert {name for name in model.state_dict() if name.startswith("heads.")} <= anew
    state = model.state_dict()
    for modality in ("audio", "visual"):
        for name in ("attn.qkv.weight", "mlp.fc2.bias"):
            assert torch.equal(state[f"encoder.{modality}.blocks.1.{name}"], vit[f"blocks.1.{name}"])
        assert torch.equal(state[f"encoder.norm.{modality}.weight"], vit["norm.weight"])
    summed = vit["patch_embed.proj.weight"].sum(1).flatten(1)
    assert torch.equal(state["encoder.audio.patch_embed.weight"], summed)


@torch.no_grad()
def test_a_classifier_begins_with_the_towers(tmp_path):
    model = small()
    save_described(tmp_path / "a.safetensors", model.state_dict(), Description(model.config))
    classifier = AudioVisualClassifier(model.config, 3).eval()
    initialize(classifier, read_weights(tmp_path / "a.safetensors"))
    fbank, frames = torch.randn(2, 64, 32), torch.randn(2, 1, 3, 32, 32)
    audio, visual = model.encoder(fbank, frames[:, 0])
    both = classifier.encoder.features(fbank, frames)
    torch.testing.assert_close(both, torch.cat([audio.mean(1), visual.mean(1)], dim=1))
    alone = classifier.encoder.features(None, frames, trained_on_both=False)
    torch.testing.assert_close(alone, visual.mean(1).repeat(1, 2))
    assert classifier(fbank, frames).shape == (2, 3)
    depths = {classifier.encoder.depth_of(name) for name, _ in classifier.encoder.named_parameters()}
    assert depths == {0, 1, 2, 3}


@torch.no_grad()
def test_padding_can_be_left_out():
    model = small()
    fbank = torch.randn(2, 64, 32)
    other = fbank.clone()
    other[:, 32:] = 9
    found = [model.encoder.embed(x, None, audio_columns=2).audio for x in (fbank, other)]
    assert found[0] is not None
    torch.testing.assert_close(*found, atol=0, rtol=0)


def test_encoders_are_exported_as_programs(tmp_path):
    model = small(modality_depth=1)
    fbank = FbankConfig(target_length=64, num_mel_bins=32)
    differences = program.export_programs(model.encoder.eval(), fbank, tmp_path / "program", onnx=False)
    assert max(differences.values()) < 1e-4


def test_towers_are_vits_that_timm_opens(tmp_path):
    model = small(modality_depth=1, layer_norm_eps=1e-5)
    fbank = FbankConfig(target_length=64, num_mel_bins=32)
    differences = export_timm(model.encoder.eval(), Description(model.config, fbank), tmp_path)
    assert set(differences) == {"audio", "visual"}
    assert max(differences.values()) < 1e-4
