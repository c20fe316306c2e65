"""EquiAV as an objective: what it computes, what it measures, what it refuses."""

from dataclasses import replace

import pytest
import torch
from support.equiav import small_equiav
from support.training import make_batch
from torch import nn

from engine.config import PretrainConfig, parse_config
from engine.evaluation.features import Features
from engine.objectives.equiav import EquiAvConfig
from models import EquiAvModelConfig, info_nce, nt_xent, roll_time
from models.equiav.transforms import AudioTransform, TransformConfig, VisualTransform, draw_centroids


@pytest.mark.parametrize("centroid", [3, 0])
def test_the_loss_is_its_definition(centroid):
    config = EquiAvConfig(
        inter_weight=0.5, audio_weight=0.2, visual_weight=0.3, temperature_inter=0.2,
        temperature_intra=0.1, centroid=centroid, roll=False,
    )  # fmt: skip
    objective, batch = small_equiav(config), make_batch([3, 1, 4, 2])
    fbank, frames = objective.inputs(batch)
    t_audio = AudioTransform.draw(batch.seeds, (32, 32), TransformConfig())
    t_visual = VisualTransform.draw(batch.seeds, (32, 32), TransformConfig())
    assert batch.frames is not None
    pictures = objective.visual_front_end(255 * t_visual.apply(batch.frames[:, 0] / 255))
    audio, visual = objective.model(
        (fbank, t_audio.apply(fbank)),
        (frames[:, 0], pictures),
        (t_audio.describe(), t_visual.describe()),
        draw_centroids(batch.seeds, 3, (32, 32), (32, 32), TransformConfig()) if centroid else None,
    )
    inter = sum(
        info_nce(a, b, 0, 0.2)[0] / 2 for a, b in ((audio.inter, visual.inter), (visual.inter, audio.inter))
    )
    intra = [
        (nt_xent(x.predicted, x.augmented, x.predicted, 0, 0.1)[0]
         + nt_xent(x.augmented, x.predicted, x.augmented, 0, 0.1)[0]) / 2
        for x in (audio, visual)
    ]  # fmt: skip
    found = objective(batch)
    torch.testing.assert_close(found["loss_inter"], inter)
    torch.testing.assert_close(found["loss_audio"], intra[0])
    torch.testing.assert_close(found["loss_visual"], intra[1])
    torch.testing.assert_close(found["loss"], 0.5 * inter + 0.2 * intra[0] + 0.3 * intra[1])
    assert [name for name, value in found.items() if value.requires_grad] == ["loss"]
    assert found["inter_chance"] == 0.25


def test_the_original_is_not_transformed_and_the_other_view_is():
    objective, batch = small_equiav(), make_batch([3, 1, 4, 2])
    views = objective.views(batch)
    fbank, frames = objective.inputs(batch)
    assert torch.equal(views.fbank, roll_time(fbank, batch.seeds))
    assert torch.equal(views.frames, frames[:, 0])
    assert not torch.isclose(views.fbank_transformed, fbank).all(dim=2).all(dim=1).any()
    assert not torch.isclose(views.frames_transformed, views.frames).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("centroid", [4, 0])
def test_the_workload_counts_every_linear_layer(centroid):
    objective, products = small_equiav(EquiAvConfig(centroid=centroid)), 0

    def count(layer, inputs, output):
        nonlocal products
        products += output.numel() * layer.in_features

    for layer in objective.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    objective(make_batch([0, 1]))
    assert objective.workload(bf16=False).flops == 3 * 2 * products / 2


def test_vectors_do_not_depend_on_seeds_or_on_the_rest_of_the_batch():
    objective = small_equiav().eval()
    batch = make_batch([0, 1, 2, 3])
    with torch.no_grad():
        found = objective.embed(batch)
        other = objective.embed(replace(batch, seeds=batch.seeds + 1))
        alone = objective.embed(make_batch([2]))
    assert set(found) == {"audio", "visual", "audio_visual", "inter_audio", "inter_visual"}
    for name, value in found.items():
        assert torch.equal(value, other[name]), name
        torch.testing.assert_close(value[2:3], alone[name])


def test_retrieval_is_by_what_is_contrasted_and_probes_by_what_is_kept():
    rows, noise = torch.eye(4), torch.ones(4, 4)
    streams = {"audio": noise, "visual": noise, "audio_visual": noise}
    features = Features(
        list("abcd"), torch.arange(4), None, streams | {"inter_audio": rows, "inter_visual": rows}
    )
    objective = small_equiav()
    assert objective.measure(features)["retrieval_a2v_r1"] == 1
    assert set(objective.probed(features)) == set(streams)


def test_transformations_are_pictured():
    pictures = small_equiav().pictures(make_batch([0, 1]))
    assert set(pictures) == {"views/frames", "views/spectrograms"}
    assert all(value.dtype == torch.uint8 for value in pictures.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature_intra": 0}, "objective.temperature_intra is 0"),
        ({"audio_weight": -1}, "objective.audio_weight is -1"),
        ({"centroid": -2}, "objective.centroid is -2"),
        ({"inter_weight": 0, "audio_weight": 0, "visual_weight": 0}, "nothing to learn"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        EquiAvConfig(**settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"name": "equiav_tiy"}, "did you mean equiav_tiny"),
        ({"audio_length": 40}, "audio_length is 40"),
        ({"embed_dim": 26, "num_heads": 2}, "embed_dim is 26"),
        ({"embed_dim": 24, "num_heads": 5}, "multiple of num_heads 5"),
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
    ],
)
def test_impossible_models_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        EquiAvModelConfig(**({"name": "equiav_tiny"} | overrides))


@pytest.mark.parametrize("data", ["audioset", "vggsound"])
def test_recipes_are_the_published_one(data):
    words = ["--config", f"configs/{data}_equiav.yaml"]
    config, _ = parse_config(PretrainConfig, "x", words)
    assert config.objective == EquiAvConfig()
    assert config.model == EquiAvModelConfig()
    assert (config.optimizer.lr, config.optimizer.clip_grad, config.train.epochs) == (1e-4, 0.01, 20)
    assert config.train.parallel.global_batch_size == 128


def test_pictures_too_small_to_blur_are_refused():
    with pytest.raises(ValueError, match=r"model\.image_size is 8"):
        EquiAvConfig().check(EquiAvModelConfig("equiav_tiny", image_size=8, patch_size=8))
