"""MAViL's weights in and out: published files, ImageNet starts, exports, features for a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_mavil import mavil_inputs, small_mavil
from support.sources import mae_state

from models import AudioVisualClassifier, FbankConfig, build_encoder, load_pretrained
from models.convert import main as convert
from models.export.formats import export
from models.export.timm import export_timm
from models.layers.masking import MaskConfig
from models.mavil import MAVIL_FBANK
from models.mavil.encoder import MavilEncoder
from models.mavil.published import infer_config, to_ours
from models.pretrained import load_model
from models.weights.description import Description, save_described
from models.weights.errors import WeightsError
from models.weights.initialize import Outcome, initialize
from models.weights.sources import read_weights

REFERENCE = Path(__file__).parents[1] / "reference" / "mavil_encoder_a.safetensors"
KNOWN: dict[str, Any] = {"num_heads": 4, "image_size": 48, "num_mel_bins": 32}
WORDS = [f"{key}={value}" for key, value in KNOWN.items()]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    state = {k.removeprefix("model."): v for k, v in load_file(REFERENCE).items() if k.startswith("model.")}
    torch.save({"model": state, "epoch": 7}, tmp_path / "mavil.pth")
    return tmp_path / "mavil.pth"


@torch.no_grad()
def test_a_published_file_there_and_back(published, tmp_path, capsys):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    convert([str(published), str(ours), "--set", *WORDS])
    assert "encoder.fusion.blocks" in capsys.readouterr().out
    convert([str(ours), str(back), "--format", "published"])
    given, found = (torch.load(path, weights_only=True) for path in (published, back))
    given = given["model"]
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], value) for name, value in given.items())
    encoders = load_pretrained(ours)
    assert isinstance(encoders.encoder, MavilEncoder)
    assert (encoders.fbank.mean, encoders.fbank.std) == (MAVIL_FBANK.mean, MAVIL_FBANK.std)
    assert encoders.fbank.target_length == 64
    waveform = torch.randint(-8000, 8000, (3, 11000), dtype=torch.int16)
    frames = torch.randint(0, 256, (3, 4, 3, 48, 48), dtype=torch.uint8)
    vectors = encoders(waveform, frames=frames)
    assert vectors.joint is not None
    assert vectors.joint.shape == (3, 64)
    with pytest.raises(ValueError, match="3 frames a clip: the model takes 4"):
        encoders(frames=frames[:, :3])


def test_names_that_nobody_knows_are_refused(published):
    source = read_weights(published)
    source.state["extra"] = torch.zeros(1)
    encoder = build_encoder(source.model_config(**KNOWN))
    with pytest.raises(WeightsError, match="extra in the file has no place"):
        initialize(encoder, source)


def test_the_config_of_the_published_checkpoint():
    with torch.device("meta"):
        shapes = {
            "patch_embed.proj.weight": torch.empty(768, 1, 16, 16),
            "patch_embed_v.proj.weight": torch.empty(768, 3, 2, 16, 16),
            "pos_embed": torch.empty(1, 513, 768),
            "pos_embed_v": torch.empty(1, 785, 768),
            "blocks.0.mlp.fc1.bias": torch.empty(3072),
        }
        shapes |= {f"blocks.{i}.norm1.bias": torch.empty(768) for i in range(12)}
        shapes |= {f"blocks_av.{i}.norm1.bias": torch.empty(768) for i in range(3)}
    config = infer_config(shapes)
    assert (config.name, config.fusion_depth, config.frames) == ("mavil_base", 3, 8)
    assert (config.embed_dim, config.depth, config.audio_length) == (None, None, 1024)
    with pytest.raises(ValueError, match="pos_embed_v is missing"):
        infer_config({name: value for name, value in shapes.items() if name != "pos_embed_v"})


def test_heads_of_single_towers_are_left_out_with_a_reason():
    state = {"head_a.weight": torch.zeros(3, 2), "fc_norm_v.bias": torch.zeros(2)}
    ours, left = to_ours(state)
    assert not ours
    assert set(left) == set(state)


@torch.no_grad()
def test_an_imagenet_mae_starts_towers_and_decoders(tmp_path):
    vit = mae_state()
    torch.save({"model": vit}, tmp_path / "mae.pth")
    model = small_mavil(depth=3, mask=MaskConfig(0.5, 0.5))
    report = initialize(model, read_weights(tmp_path / "mae.pth"))
    anew = set(report.names(Outcome.anew))
    assert {name.rsplit(".", 1)[0] for name in anew if "fusion" not in name} == {
        "encoder.audio", "encoder.visual", "decoder.audio", "decoder.visual", "decoder.audio.pred",
        "decoder.audio.pred_features", "decoder.visual.pred_features",
    }  # fmt: skip
    state = model.state_dict()
    for part in ("attn.qkv.weight", "mlp.fc2.bias"):
        assert torch.equal(state[f"encoder.audio.blocks.1.{part}"], state[f"encoder.visual.blocks.1.{part}"])
    # A film of one picture is embedded as the picture.
    picture = torch.randn(1, 3, 32, 32)
    expected = torch.nn.functional.conv2d(
        picture, vit["patch_embed.proj.weight"], vit["patch_embed.proj.bias"], stride=16
    )
    patches = model.encoder.patchify_visual(picture[:, None].expand(-1, 4, -1, -1, -1))
    embedded = model.encoder.visual.patch_embed(patches)[0, :4]
    torch.testing.assert_close(embedded, expected.flatten(2)[0].T, atol=1e-5, rtol=1e-4)


def test_weights_of_another_length_keep_all_but_positions(tmp_path):
    model = small_mavil()
    save_described(tmp_path / "a.safetensors", model.state_dict(), Description(model.config))
    longer = small_mavil(audio_length=128)
    report = initialize(longer, read_weights(tmp_path / "a.safetensors"))
    assert set(report.names(Outcome.anew)) == {"encoder.audio.pos_embed", "decoder.audio.pos_embed"}
    assert torch.equal(longer.encoder.audio.pos_embed[:8], model.encoder.audio.pos_embed)


def test_other_frames_are_another_model(tmp_path):
    model = small_mavil()
    save_described(tmp_path / "a.safetensors", model.state_dict(), Description(model.config))
    with pytest.raises(
        WeightsError, match=r"(?s)encoder.visual.patch_embed.weight has shape.*model.frames=4"
    ):
        initialize(small_mavil(frames=1, mask=MaskConfig(0.5, 0.5)), read_weights(tmp_path / "a.safetensors"))


@torch.no_grad()
def test_what_a_classifier_sees():
    model = small_mavil()
    encoder = model.encoder.eval()
    fbank, frames, _, _ = mavil_inputs(model.config)
    fused = encoder(fbank, frames)
    assert fused.audio is not None
    assert fused.visual is not None
    expected = torch.cat([fused.audio[:, 1:].mean(1), fused.visual[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(encoder.features(fbank, frames), expected)
    tower = encoder.towers(fbank).audio
    assert tower is not None
    alone = tower[:, 1:].mean(1)
    torch.testing.assert_close(
        encoder.features(fbank, None, trained_on_both=False), torch.cat([alone, alone], dim=1)
    )
    missing = encoder(frames=frames).visual
    assert missing is not None
    torch.testing.assert_close(encoder.features(None, frames)[:, 32:], missing[:, 1:].mean(1))
    classifier = AudioVisualClassifier(model.config, 5)
    assert classifier(fbank, frames).shape == (3, 5)


@torch.no_grad()
def test_padding_is_left_out_of_the_vectors():
    encoder = small_mavil().encoder.eval()
    fbank, frames, _, _ = mavil_inputs(encoder.config)
    padded = fbank.clone()
    padded[:, 32:] = 7
    one, other = (encoder.embed(x, frames, audio_columns=2) for x in (fbank, padded))
    assert torch.equal(one.audio, other.audio)  # type: ignore[arg-type]
    assert torch.equal(one.joint, other.joint)  # type: ignore[arg-type]


def test_layers_in_order_and_what_does_not_decay():
    model: Any = small_mavil(bottleneck_tokens=2)
    encoder = model.encoder
    depths = {name: encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    assert depths["audio.patch_embed.weight"] == depths["visual.cls_token"] == 0
    assert depths["audio.blocks.0.norm1.weight"] == 1
    assert depths["visual.blocks.1.mlp.fc1.bias"] == 2
    assert depths["fusion.audio_blocks.0.attn.qkv.weight"] == depths["fusion.bottleneck"] == 3
    assert encoder.num_layers == 3
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    assert "encoder.fusion.bottleneck" in model.no_weight_decay()


@torch.no_grad()
def test_a_published_fine_tuned_file_classifies(published, tmp_path):
    state = torch.load(published, weights_only=True)["model"]
    state |= {"fc_norm_av.weight": torch.rand(64), "fc_norm_av.bias": torch.rand(64)}
    state |= {"head_av.weight": torch.randn(7, 64), "head_av.bias": torch.randn(7)}
    save_file(state, tmp_path / "fine_tuned.safetensors")
    source = read_weights(tmp_path / "fine_tuned.safetensors")
    model, report = load_model(source, **KNOWN)
    assert not report.names(Outcome.ignored)
    assert isinstance(model, AudioVisualClassifier)
    reference = load_file(REFERENCE)
    fbank, frames = reference["input.fbank"][:, 0], reference["input.video"].transpose(1, 2)
    pooled, weights = (
        reference["expect.fusion_pooled"],
        (state["fc_norm_av.weight"], state["fc_norm_av.bias"]),
    )
    expected = torch.nn.functional.layer_norm(pooled, (64,), *weights, eps=1e-6)
    expected = expected @ state["head_av.weight"].T + state["head_av.bias"]
    torch.testing.assert_close(model(fbank, frames), expected, atol=1e-4, rtol=0)
    export(str(tmp_path / "fine_tuned.safetensors"), tmp_path / "out", "published", **KNOWN)
    back = torch.load(tmp_path / "out" / "mavil.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_encoders_as_programs(tmp_path):
    model = small_mavil(depth=1)
    save_described(tmp_path / "a.safetensors", model.state_dict(), Description(model.config))
    export(str(tmp_path / "a.safetensors"), tmp_path / "programs", "torch_export", onnx=False)
    program = torch.export.load(tmp_path / "programs" / "visual.pt2").module()
    _, frames, _, _ = mavil_inputs(model.config, batch=5)
    expected = model.encoder.embed(None, frames).visual
    torch.testing.assert_close(program(frames), expected)


@pytest.mark.parametrize(("frames", "modalities"), [(1, {"audio", "visual"}), (4, {"audio"})])
def test_towers_without_tubelets_are_vits_that_timm_opens(tmp_path, frames, modalities):
    model = small_mavil(frames=frames, mask=MaskConfig(0.5, 0.5))
    fbank = FbankConfig(target_length=model.config.audio_length, num_mel_bins=model.config.num_mel_bins)
    differences = export_timm(model.encoder.eval(), Description(model.config, fbank), tmp_path)
    assert set(differences) == modalities == {folder.name for folder in tmp_path.iterdir()}
    assert max(differences.values()) < 1e-5


def test_towers_with_another_epsilon_are_no_vits_of_timm(tmp_path):
    model = small_mavil(layer_norm_eps=1e-5)
    with pytest.raises(WeightsError, match="layer_norm_eps is 1e-05 and timm's 1e-06"):
        export_timm(model.encoder.eval(), Description(model.config, FbankConfig()), tmp_path)
