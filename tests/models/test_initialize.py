"""What becomes of every tensor when weights of any source go into a model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import SMALL, inputs, small_model
from support.sources import mae_state, randomize, small_vit

from datasets.loading.loader import DataConfig
from engine.config import PretrainConfig
from engine.tasks.pretrain import initial_objective
from models import AudioVisualClassifier, AudioVisualEncoder, CavMaeModelConfig, FbankConfig
from models.layers.position import sincos_2d
from models.weights.errors import WeightsError
from models.weights.initialize import Outcome, initialize
from models.weights.sources import SourceKind, SourceWeights, read_weights

REFERENCE = Path(__file__).parents[1] / "reference" / "cav_mae_norm_pix.safetensors"


def source_of(state, kind=SourceKind.vit, **details) -> SourceWeights:
    return SourceWeights(kind, Path("file.pth"), dict(state), **details)


def published(kind: str) -> SourceWeights:
    prefix = f"{kind}.module."
    state = {k.removeprefix(prefix): v for k, v in load_file(REFERENCE).items() if k.startswith(prefix)}
    return source_of(state, SourceKind.cav_mae)


def published_config(**overrides) -> CavMaeModelConfig:
    config = published("pretrain").model_config(num_heads=2, decoder_num_heads=4, **overrides)
    assert isinstance(config, CavMaeModelConfig)
    return config


def test_every_tensor_of_both_sides_is_accounted_for_once():
    model = small_model(decoder_embed_dim=16)
    source = source_of(mae_state() | {"head.weight": torch.zeros(3, 32)})
    report = initialize(model, source)
    inside = [entry.name for entry in report.entries if entry.name]
    assert sorted(inside) == sorted(model.state_dict())
    taken = {entry.source for entry in report.entries if entry.source}
    assert taken == set(source.state)
    assert all(entry.why for entry in report.entries if entry.outcome is not Outcome.loaded)


def test_a_mae_file_fills_towers_joint_block_and_decoder():
    model, state = small_model(), mae_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = initialize(model, source_of(state))
    now = model.state_dict()
    for tower in ("audio", "visual"):
        for block in (0, 1):
            for name in ("attn.qkv.weight", "mlp.fc2.bias", "norm2.weight"):
                assert torch.equal(
                    now[f"encoder.{tower}.blocks.{block}.{name}"], state[f"blocks.{block}.{name}"]
                )
        assert torch.equal(now[f"encoder.{tower}.patch_embed.bias"], state["patch_embed.proj.bias"])
    assert torch.equal(now["encoder.joint_blocks.0.mlp.fc1.weight"], state["blocks.2.mlp.fc1.weight"])
    for stream in ("joint", "audio", "visual"):
        assert torch.equal(
            now[f"encoder.joint_blocks.0.norm1.{stream}.weight"], state["blocks.2.norm1.weight"]
        )
        assert torch.equal(now[f"encoder.norm.{stream}.bias"], state["norm.bias"])
    assert torch.equal(now["encoder.visual.pos_embed"], state["pos_embed"][0, 1:])
    assert torch.equal(now["decoder.blocks.0.attn.proj.weight"], state["decoder_blocks.0.attn.proj.weight"])
    assert torch.equal(now["decoder.pred_visual.weight"], state["decoder_pred.weight"])
    assert torch.equal(now["decoder.mask_token"], state["mask_token"][0, 0])
    for name in report.names(Outcome.anew):
        assert torch.equal(now[name], before[name])
    assert set(report.names(Outcome.anew)) == {
        "encoder.audio.modality_embed", "encoder.visual.modality_embed", "decoder.modality_embed_audio",
        "decoder.modality_embed_visual", "decoder.pred_audio.weight", "decoder.pred_audio.bias",
    }  # fmt: skip
    assert report.names(Outcome.ignored) == ["cls_token"]


def test_the_audio_embedding_of_a_grey_picture_is_the_visual_one():
    model = small_model(audio_length=32)
    initialize(model, source_of(mae_state(decoder=False)))
    fbank = torch.randn(2, 32, 32)
    grey = fbank.transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
    audio = model.encoder.audio.patch_embed(model.patchify_audio(fbank))
    visual = model.encoder.visual.patch_embed(model.patchify_visual(grey))
    torch.testing.assert_close(audio, visual, rtol=1e-4, atol=1e-5)


def test_positions_go_to_both_grids():
    state = mae_state(decoder=False)
    state["pos_embed"] = torch.cat(
        [torch.zeros(1, 1, 32), torch.arange(4.0)[None, :, None].expand(1, 4, 32)], dim=1
    )
    model = small_model(image_size=64)
    report = initialize(model, source_of(state))
    audio = model.encoder.audio.pos_embed.reshape(2, 4, 32)
    visual = model.encoder.visual.pos_embed.reshape(4, 4, 32)
    assert torch.equal(audio[0].diff(dim=0) > 0, torch.ones(3, 32, dtype=torch.bool))  # columns ascend
    assert (visual[3, 3] > visual[0, 0]).all()
    assert torch.allclose(visual.mean(dim=(0, 1)), torch.full((32,), 1.5), atol=1e-5)
    why = {entry.name: entry.why for entry in report.entries}
    assert why["encoder.audio.pos_embed"] == "interpolated from 2×2 to 2×4"


@pytest.mark.parametrize("options", [{}, {"init_values": 0.3}])
def test_a_vit_without_class_token_is_the_visual_stream(options):
    vit = small_vit(class_token=False, global_pool="avg", fc_norm=False, **options)
    model = small_model()
    torch.nn.init.zeros_(model.encoder.visual.modality_embed)
    initialize(model, source_of(vit.state_dict()))
    frames = inputs(model.config)[1]
    with torch.no_grad():
        ours = model.encoder(frames=frames, joint=False).visual
        torch.testing.assert_close(ours, vit.forward_features(frames), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_an_encoder_takes_the_encoder_of_a_fine_tuned_file():
    encoder = AudioVisualEncoder(published_config())
    report = initialize(encoder, published("finetune"))
    whys = {entry.why for entry in report.entries if entry.outcome is Outcome.ignored}
    assert whys == {"the model has no classification head", "the published model has it and never uses it"}


def test_a_new_task_has_a_new_head():
    config = published_config()
    model = AudioVisualClassifier(config, 4)
    report = initialize(model, published("pretrain"))
    assert report.names(Outcome.anew) == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    with pytest.raises(WeightsError, match=r"head.weight has shape \(4, 16\).*\(7, 16\)"):
        initialize(model, published("finetune"))
    report = initialize(model, published("finetune"), allow=["head.*"])
    assert report.names(Outcome.anew) == ["head.weight", "head.bias"]


def test_time_goes_on_where_the_file_ends():
    config = published_config()
    encoder = AudioVisualEncoder(replace(config, audio_length=2 * config.audio_length, image_size=96))
    report = initialize(encoder, published("pretrain"))
    rows, columns = encoder.config.audio_grid
    assert torch.equal(encoder.audio.pos_embed, sincos_2d(16, (rows, columns)))
    why = {entry.name: entry.why for entry in report.entries}
    assert "fixed sin-cos positions" in why["encoder.audio.pos_embed"]
    assert why["encoder.visual.pos_embed"] == "interpolated from 3×3 to 6×6"


def test_what_is_missing_left_over_or_misshapen_is_named():
    state = mae_state()
    del state["blocks.1.attn.qkv.bias"]
    state["blocks.3.norm1.weight"] = state["register"] = torch.zeros(32)
    state["decoder_norm.weight"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        initialize(small_model(), source_of(state))
    text = str(caught.value)
    assert "encoder.audio.blocks.1.attn.qkv.bias is missing in the file" in text
    assert "blocks.3.norm1.weight in the file has no place in the model" in text
    assert "register in the file" in text
    assert "decoder.norm.weight has shape (16,), decoder_norm.weight in the file (3,)" in text
    allow = ["*.blocks.1.attn.qkv.bias", "blocks.3.*", "register", "decoder.norm.weight"]
    report = initialize(small_model(), source_of(state), allow)
    assert "allowed" in {entry.why for entry in report.entries}


def test_a_deeper_model_s_blocks_are_named_together():
    state = mae_state()
    more = {
        name.replace("s.0.", f"s.{n}."): v for name, v in state.items() for n in (3, 4) if "blocks.0" in name
    }
    with pytest.raises(WeightsError) as caught:
        initialize(small_model(), source_of(state | more))
    assert "blocks.4.* in the file has no place in the model (12 tensors)" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 6


def test_another_width_or_other_heads_are_one_error():
    with pytest.raises(WeightsError, match="width 32, the model's embed_dim is 64"):
        initialize(small_model(embed_dim=64), source_of(mae_state()))
    with pytest.raises(WeightsError, match="4 attention heads, the model's num_heads is 2"):
        initialize(small_model(), source_of(mae_state(), num_heads=4))


def test_the_report_can_be_read():
    report = initialize(small_model(), source_of(mae_state()))
    lines = str(report).splitlines()
    assert lines[0] == "weights from file.pth (ViT (ImageNet MAE, timm))"
    assert any("summed over colour channels" in line for line in lines)
    assert any("the model's num_heads 2 is taken" in line for line in lines)
    assert len(lines) < 45
    config = replace(published_config(), layer_norm_eps=1e-6)
    report = initialize(AudioVisualEncoder(config), published("pretrain"))
    assert "epsilon was 1e-05 there and is 1e-06 here" in report.notes[0]


def test_pretraining_begins_with_the_weights_it_is_given(tmp_path):
    config = CavMaeModelConfig("cav_mae_tiny", **SMALL)
    donor = randomize(small_model())
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    save_file(donor.state_dict(), folder / "model.safetensors")
    text = "".join(f"\n  {key}: {value}" for key, value in SMALL.items())
    (folder / "config.yaml").write_text(f"model:\n  name: cav_mae_tiny{text}\n")
    fbank = {"target_length": config.audio_length, "num_mel_bins": config.num_mel_bins}
    run = PretrainConfig(DataConfig("nowhere"), init=str(folder), model=config, fbank=FbankConfig(**fbank))
    model = initial_objective(run, resumed=False).model
    assert all(torch.equal(value, donor.state_dict()[name]) for name, value in model.state_dict().items())
    assert read_weights(folder).config == config


def test_a_begun_run_needs_no_init(tmp_path):
    config = CavMaeModelConfig("cav_mae_tiny", **SMALL)
    fbank = FbankConfig(target_length=config.audio_length, num_mel_bins=config.num_mel_bins)
    gone = str(tmp_path / "gone")
    run = PretrainConfig(
        DataConfig("nowhere"), output_dir=str(tmp_path / "run"), init=gone, model=config, fbank=fbank
    )
    with pytest.raises((WeightsError, FileNotFoundError), match="gone"):
        initial_objective(run, resumed=False)
    initial_objective(run, resumed=True)
