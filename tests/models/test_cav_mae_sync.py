"""CAV-MAE Sync beyond the published sizes, and its weights in and out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.published import load_published
from support.small_models import gradients, small_model
from support.sync import local_contrast, one_pass, small_sync

from models import CavMaeSyncEncoder, FbankConfig, MaskConfig, info_nce, load_pretrained, reconstruction_loss
from models.cav_mae.mae import AudioVisualMAE
from models.cav_mae_sync.config import CavMaeSyncModelConfig
from models.cav_mae_sync.model import CavMaeSync
from models.cav_mae_sync.published import infer_config, limits
from models.cav_mae_sync.segments import covering_starts, cut_segments, published_middles, segment_starts
from models.convert import convert
from models.export.formats import export
from models.pretrained import named_state
from models.weights.description import Description, save_described
from models.weights.errors import WeightsError
from models.weights.initialize import Outcome, initialize
from models.weights.published import to_published
from models.weights.sources import SourceKind, SourceWeights, read_weights

REFERENCE = Path(__file__).parents[1] / "reference"
HEADS = {"num_heads": 2, "decoder_num_heads": 4}


@pytest.fixture
def state():
    tensors = load_file(REFERENCE / "cav_mae_sync_a.safetensors")
    return {k.removeprefix("pretrain."): v for k, v in tensors.items() if k.startswith("pretrain.")}


@pytest.fixture
def published_file(state, tmp_path):
    save_file(state, tmp_path / "sync.safetensors")
    return tmp_path / "sync.safetensors"


@pytest.mark.parametrize(
    "overrides",
    [
        {"image_size": 64},
        {"joint_depth": 2, "contrast_depth": 1},
        {"num_registers": 0},
        {"segment_length": 48, "activation_checkpointing": True},
    ],
)
def test_every_parameter_learns_at_any_size(overrides):
    model = small_sync(**overrides)
    fbank, frames, masks, out = one_pass(model, batch=1 if "image_size" in overrides else 3)
    loss = info_nce(out.streams.global_visual, out.streams.global_audio, 0, 0.05)[0]
    loss = loss + local_contrast(out.streams, 0.05)[0]
    loss = loss + reconstruction_loss(out.pred_audio, model.patchify_audio(fbank), masks[0].mask)
    loss = loss + reconstruction_loss(out.pred_visual, model.patchify_visual(frames), masks[1].mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in gradients(model).values())


def test_parts_are_computed_alone():
    model = small_sync()
    *_, both = one_pass(model)
    *_, contrast = one_pass(model, reconstruct=False)
    *_, reconstructed = one_pass(model, contrast=False)
    assert contrast.pred_audio is None
    assert contrast.streams.joint is None
    assert torch.equal(contrast.streams.global_audio, both.streams.global_audio)
    assert reconstructed.streams.global_audio is None
    assert torch.equal(reconstructed.pred_visual, both.pred_visual)


def test_registers_and_global_tokens_do_what_they_are_for():
    """Registers reach the patches through the towers only; the joint stream has no global token."""
    model = small_sync()
    fbank, frames, masks, before = one_pass(model)
    assert before.streams.joint.shape[1] == masks[0].ids_keep.shape[1] + masks[1].ids_keep.shape[1]
    with torch.no_grad():
        model.encoder.registers *= -1.0
    after = model(fbank, frames, *masks)
    assert not torch.allclose(after.streams.global_visual, before.streams.global_visual)


def test_the_attention_that_ranks_is_the_blocks_own():
    """Mixing the values by the same weights gives what the block's attention gives the first token's share."""
    model = small_sync()
    fbank, frames, *_ = one_pass(model)
    attention = model.encoder.global_attention(fbank, frames)
    streams = model.encoder(fbank, frames, joint=False)
    torch.testing.assert_close(attention.global_audio, streams.global_audio)
    torch.testing.assert_close(attention.global_visual, streams.global_visual)
    assert attention.audio.shape == (3, model.config.num_audio_tokens)
    assert (attention.audio > 0).all()
    assert (attention.audio < 1).all()
    with pytest.raises(ValueError, match="joint_depth is 0"):
        small_sync(joint_depth=0).encoder.global_attention(fbank, frames)


def test_segments_are_cut_where_they_start():
    fbank = torch.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    starts = torch.tensor([[0, 6], [3, 5]])
    cut = cut_segments(fbank, starts, 4)
    assert cut.shape == (2, 2, 4, 3)
    assert torch.equal(cut[1, 0], fbank[1, 3:7])


def test_segments_stay_inside_each_clip():
    index = torch.arange(4).expand(2, 4)
    lengths = torch.tensor([100, 40])
    middles = published_middles(index, torch.tensor([4, 4]), lengths)
    starts = segment_starts(middles, lengths, 40)
    assert starts.tolist() == [[0, 5, 30, 55], [0, 0, 0, 0]]


def test_covering_segments_leave_nothing_out():
    assert covering_starts(1024, 416).tolist() == [0, 304, 608]
    assert covering_starts(416, 416).tolist() == [0]
    assert covering_starts(100, 416).tolist() == [0]
    for length in range(1, 60):
        covered = {row for start in covering_starts(length, 16).tolist() for row in range(start, start + 16)}
        assert set(range(length)) <= covered


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cav_mae_sync_bass"}, "did you mean cav_mae_sync_base"),
        ({"name": "cav_mae_base"}, "unknown model 'cav_mae_base'"),
        ({"num_registers": -1}, "num_registers is -1; it must be 0 or more"),
        ({"contrast_depth": -2}, "contrast_depth is -2"),
        ({"segment_length": 410}, "segment_length is 410; it must be a positive multiple of patch_size 16"),
        (
            {"segment_length": 1040},
            "segment_length is 1040, longer than the spectrogram of audio_length 1024",
        ),
        ({"mask": MaskConfig(0.999, 0.5)}, "leaves no audio token"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CavMaeSyncModelConfig(**settings)


def test_published_weights_back_and_forth(state):
    model, report = load_published(state, **HEADS)
    assert isinstance(model, CavMaeSync)
    back = to_published(model)
    assert back.keys() == state.keys()
    never_used = {f"module.{name}" for name in report.names(Outcome.ignored)}
    assert never_used
    for name, value in state.items():
        assert back[name].shape == value.shape
        assert name in never_used or torch.equal(back[name], value), name


def test_ours_survive_the_way_out_and_back():
    model = small_sync(contrast_depth=2, num_registers=0, layer_norm_eps=1e-5)
    again, _ = load_published(to_published(model), num_heads=2, decoder_num_heads=2, num_mel_bins=32)
    assert isinstance(again, CavMaeSync)
    assert again.config.contrast_depth == 2
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_config_of_the_released_model_is_the_preset():
    shapes = {
        "patch_embed_v.proj.weight": (768, 3, 16, 16),
        "pos_embed_v": (1, 196, 768),
        "pos_embed_a": (1, 208, 768),
        "decoder_embed.weight": (512, 768),
        "blocks_u.0.mlp.fc1.weight": (3072, 768),
        "cls_token_a": (1, 1, 768),
        "cls_token_v": (1, 1, 768),
        "register_tokens": (16, 768),
    }
    shapes |= {f"blocks_a.{i}.norm1.bias": (768,) for i in range(11)}
    shapes |= {f"decoder_blocks.{i}.norm1.bias": (512,) for i in range(8)}
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert infer_config(state) == CavMaeSyncModelConfig(layer_norm_eps=1e-5)
    without = {name: value for name, value in state.items() if not name.startswith("cls")}
    with pytest.raises(ValueError, match=r"cls_token_a is missing: .* without global tokens"):
        infer_config(without)


def test_a_sync_file_in_a_cav_mae_says_what_it_is(published_file):
    found = read_weights(published_file)
    assert found.title == "published CAV-MAE Sync"
    with pytest.raises(
        WeightsError, match=r"published CAV-MAE Sync\) holds a model of the family cav_mae_sync.*give"
    ):
        initialize(small_model(embed_dim=16), found)


def test_cav_mae_is_a_start_for_sync():
    """As published: everything but global tokens and registers, positions going on in time."""
    start, _ = load_published(load_part("cav_mae_norm_pix"), **HEADS)
    assert isinstance(start, AudioVisualMAE)
    config = start.config
    model = CavMaeSync(
        CavMaeSyncModelConfig(
            "cav_mae_sync_tiny",
            image_size=config.image_size, segment_length=config.audio_length // 2, embed_dim=16, num_heads=2,
            modality_depth=config.architecture.modality_depth, decoder_embed_dim=16, decoder_num_heads=4,
            decoder_depth=config.architecture.decoder_depth,
        )
    )  # fmt: skip
    report = initialize(model, read_published("cav_mae_norm_pix"))
    assert set(report.names(Outcome.anew)) == {
        "encoder.registers", "encoder.audio.global_token", "encoder.visual.global_token",
    }  # fmt: skip
    name = "encoder.joint_blocks.0.attn.qkv.weight"
    assert torch.equal(model.state_dict()[name], start.state_dict()[name])


def load_part(name):
    tensors = load_file(REFERENCE / f"{name}.safetensors")
    return {k.removeprefix("pretrain."): v for k, v in tensors.items() if k.startswith("pretrain.")}


def read_published(name):
    bare = {key.removeprefix("module."): value for key, value in load_part(name).items()}
    return SourceWeights(SourceKind.cav_mae, Path("published.pth"), bare)


def test_files_go_through_convert(published_file, tmp_path):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    convert(str(published_file), ours, "earsight", known=HEADS)
    report = convert(str(ours), back, "published")
    assert "pictures of 224 pixels only" in report
    again = torch.load(back, weights_only=True)
    state = load_file(published_file)
    assert again.keys() == state.keys()
    assert torch.equal(again["module.register_tokens"], state["module.register_tokens"])


def test_what_the_published_code_cannot_do_is_said():
    assert not limits(CavMaeSyncModelConfig())
    assert len(limits(CavMaeSyncModelConfig(contrast_depth=3, image_size=192))) == 2


def test_a_whole_clip_is_seen_stretch_by_stretch():
    """Embedding averages what covering stretches give; short sound leaves its padding out."""
    model = small_sync(audio_length=80)
    config, encoder = model.config, model.encoder
    generator = torch.Generator().manual_seed(3)
    fbank = torch.randn(2, config.audio_length, config.num_mel_bins, generator=generator)
    frames = torch.randn(2, 1, 3, config.image_size, config.image_size, generator=generator)
    found = encoder.embed(fbank, frames)
    stretches = [encoder(fbank[:, start : start + 32], frames[:, 0]) for start in (0, 24, 48)]
    audio = torch.stack([x.global_audio for x in stretches]).mean(dim=0)
    joint = torch.stack([x.joint.mean(dim=1) for x in stretches]).mean(dim=0)
    torch.testing.assert_close(found.audio, audio)
    torch.testing.assert_close(found.joint, joint)
    torch.testing.assert_close(found.visual, stretches[0].global_visual)
    torch.testing.assert_close(encoder.features(fbank, frames), joint)
    short = encoder.embed(fbank, None, audio_columns=1).audio
    silent = fbank.clone()
    silent[:, 16:] = 7.0
    torch.testing.assert_close(encoder.embed(silent, None, audio_columns=1).audio, short)
    with pytest.raises(ValueError, match="audio_length, num_mel_bins"):
        encoder.embed(fbank[:, :32], None)


def test_layers_are_numbered_for_decay():
    model = small_sync(contrast_depth=1)
    depths = {name: model.encoder.depth_of(name) for name, _ in model.encoder.named_parameters()}
    assert set(depths.values()) == set(range(6))
    assert depths["registers"] == depths["audio.global_token"] == 0
    assert depths["visual.blocks.1.mlp.fc1.bias"] == 2
    assert depths["joint_blocks.0.norm1.joint.weight"] == 3
    assert depths["contrast_blocks_audio.0.norm1.weight"] == 4
    assert depths["norm.joint.weight"] == model.encoder.num_layers + 1


def test_every_export_but_timms(tmp_path):
    model = small_sync(audio_length=80, contrast_depth=1)
    file = tmp_path / "model.safetensors"
    fbank = FbankConfig(target_length=80, num_mel_bins=32)
    save_described(file, named_state(model), Description(model.config, fbank))
    for form in ("earsight", "published", "torch_export"):
        report = export(str(file), tmp_path / form, form, onnx=False)
        assert (tmp_path / form / "README.md").is_file(), report
    encoders = load_pretrained(tmp_path / "earsight")
    assert isinstance(encoders.encoder, CavMaeSyncEncoder)
    waveform = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)) / 10
    frames = torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8)
    found = encoders(waveform, torch.tensor([6000, 4000]), frames)
    assert found.audio.shape == found.visual.shape == found.joint.shape == (2, 32)
    alone = encoders(waveform[1:, :4000], None, frames[1:])
    torch.testing.assert_close(found.audio[1:], alone.audio)
    with pytest.raises(WeightsError, match="no pair of plain ViTs that timm could open"):
        export(str(file), tmp_path / "timm", "timm")
