"""Backbones of transformers, small and random: the same command, and vectors that are each clip's own."""

from pathlib import Path

import pytest
import torch
from support.shards import make_shards

from datasets.batch import AVBatch
from engine.embed.backbones import PictureBackbone, SoundBackbone, VideoBackbone, is_backbone, load_backbone
from engine.embed.run import embed, load_embedder
from engine.embeddings import read_embeddings
from engine.inference.parts import Work
from engine.inference.sources import open_source

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
# transformers warns of what it does itself when it builds these models.
pytestmark = pytest.mark.filterwarnings("ignore")

_SOUND = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (16, 16), "conv_kernel": (10, 4), "conv_stride": (160, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_PICTURE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}


def save(folder: Path, kind: str, **settings) -> Path:
    config = {
        "wav2vec2": transformers.Wav2Vec2Config, "hubert": transformers.HubertConfig,
        "dinov2": transformers.Dinov2Config, "videomae": transformers.VideoMAEConfig,
    }[kind](**settings)  # fmt: skip
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def sounds(*lengths: int) -> AVBatch:
    generator = torch.Generator().manual_seed(1)
    wave = torch.zeros(len(lengths), max(lengths), dtype=torch.int16)
    for row, length in zip(wave, lengths, strict=True):
        row[:length] = torch.randint(-9000, 9000, (length,), generator=generator, dtype=torch.int16)
    rows = torch.arange(len(lengths))
    return AVBatch([str(i) for i in rows], rows, rows, wave, torch.tensor(lengths))


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
@torch.no_grad()
def test_a_sound_s_vector_does_not_depend_on_its_batch(tmp_path, kind, norm):
    stable = {
        "do_stable_layer_norm": norm == "layer",
        "feat_extract_norm": norm,
        "conv_bias": norm == "layer",
    }
    backbone = load_backbone(save(tmp_path, kind, **_SOUND, **stable))
    assert isinstance(backbone, SoundBackbone)
    assert backbone.tower.least == 490
    lengths = (5000, 16000, 9001, 5000)
    together = backbone(sounds(*lengths))["audio"]
    batch = sounds(*lengths)
    assert batch.waveform is not None
    for row, length in enumerate(lengths):
        alone = AVBatch(
            ["x"],
            torch.zeros(1),
            torch.zeros(1),
            batch.waveform[row : row + 1, :length],
            torch.tensor([length]),
        )
        torch.testing.assert_close(backbone(alone)["audio"][0], together[row], rtol=0, atol=2e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert torch.isfinite(backbone(sounds(5, 16000))["audio"]).all()  # shorter than one frame


@torch.no_grad()
def test_the_sound_s_vector_is_the_model_s_own_mean(tmp_path):
    backbone = load_backbone(save(tmp_path, "wav2vec2", **_SOUND))
    batch = sounds(16000)
    assert batch.waveform is not None
    wave = batch.waveform.float() / 32768
    wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()
    model = transformers.Wav2Vec2Model.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        backbone(batch)["audio"], model(wave).last_hidden_state.mean(dim=1), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_pictures_and_videos(tmp_path):
    picture = load_backbone(save(tmp_path / "dino", "dinov2", patch_size=16, **_PICTURE))
    video = load_backbone(
        save(tmp_path / "video", "videomae", patch_size=16, num_frames=4, **_PICTURE, intermediate_size=32)
    )
    assert isinstance(picture, PictureBackbone)
    assert isinstance(video, VideoBackbone)
    assert picture.image_size == video.image_size == 32
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    rows = torch.arange(2)
    batch = AVBatch(["a", "b"], rows, rows, frames=frames)
    found = picture(batch)["visual"]
    single = AVBatch(["a"], rows[:1], rows[:1], frames=frames[:1, :1])
    assert found.shape == (2, 24)
    each = [
        picture(AVBatch(["a"], rows[:1], rows[:1], frames=frames[:1, i : i + 1]))["visual"] for i in range(4)
    ]
    torch.testing.assert_close(found[:1], torch.stack(each).mean(dim=0), rtol=0, atol=1e-5)
    torch.testing.assert_close(picture(single)["visual"], each[0])
    assert video(batch)["visual"].shape == (2, 24)


@pytest.mark.parametrize(
    ("kind", "settings", "stream"),
    [
        ("hubert", _SOUND, "audio"),
        ("videomae", {**_PICTURE, "num_frames": 4, "intermediate_size": 32}, "visual"),
    ],
)
def test_the_same_command_embeds_with_them(tmp_path, kind, settings, stream):
    folder = save(tmp_path / "model", kind, **settings)
    assert is_backbone(folder)
    embedder = load_embedder(str(folder))
    shards = make_shards(tmp_path / "shards", 5, 5)
    embed(embedder, open_source(str(shards), embedder.needs), tmp_path / "out.npz", work=Work(2))
    found = read_embeddings(tmp_path / "out.npz")
    assert {name: value.shape for name, value in found.streams.items()} == {stream: (5, 24)}
    assert found.labels is not None


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a bert model; backbones are hubert"):
        load_backbone(tmp_path)
