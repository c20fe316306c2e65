"""MAViL's model: what each part sees, masks, sizes that cannot be."""

from typing import Any

import pytest
import torch
from support.small_mavil import SMALL_MAVIL, mavil_inputs, small_mavil
from torch import Tensor

from models.layers.masking import MaskConfig
from models.layers.patches import patchify_film, unpatchify_film
from models.mavil.config import MavilModelConfig
from models.mavil.encoder import BottleneckFusion, MavilTokens


def both(tokens: MavilTokens) -> tuple[Tensor, Tensor]:
    assert tokens.audio is not None
    assert tokens.visual is not None
    return tokens.audio, tokens.visual


def test_tubelets_equal_their_definition():
    frames = torch.randn(2, 4, 3, 4, 6)
    tubelets = patchify_film(frames, 2, 2)
    expected = [
        [frames[b, n : n + 2, :, y : y + 2, x : x + 2].permute(0, 2, 3, 1).flatten()
         for n in (0, 2) for y in (0, 2) for x in (0, 2, 4)]
        for b in range(2)
    ]  # fmt: skip
    assert torch.equal(tubelets, torch.stack([torch.stack(rows) for rows in expected]))
    assert torch.equal(unpatchify_film(tubelets, (2, 2, 3), 2, 2), frames)


def test_patches_go_back_to_what_they_were():
    model = small_mavil()
    fbank, frames, _, _ = mavil_inputs(model.config)
    assert torch.equal(model.unpatchify_audio(model.encoder.patchify_audio(fbank)), fbank)
    assert torch.equal(model.unpatchify_visual(model.encoder.patchify_visual(frames)), frames)
    second_moment_high = model.encoder.patchify_audio(fbank)[:, 3]
    assert torch.equal(second_moment_high, fbank[:, 16:32, 16:].flatten(1))


@pytest.mark.parametrize("bottleneck_tokens", [0, 2])
def test_kept_tokens_are_all_that_is_seen(bottleneck_tokens):
    model = small_mavil(bottleneck_tokens=bottleneck_tokens, mask=MaskConfig(0.5, 0.5))
    fbank, frames, *noise = mavil_inputs(model.config)
    view = model(fbank, frames, *noise)
    patches = model.encoder.patchify_audio(fbank)
    removed = view.audio.mask[:, :, None].bool()
    changed = model.unpatchify_audio(torch.where(removed, patches + 1, patches))
    again = model(changed, frames, *noise)
    assert torch.equal(view.decoded_audio, again.decoded_audio)
    assert torch.equal(view.decoded_visual, again.decoded_visual)
    assert both(view.towers)[0].shape[1] == 1 + model.config.num_kept_audio


def test_a_mask_keeps_the_tokens_of_lowest_noise_in_their_order():
    model = small_mavil(mask=MaskConfig(0.5, 0.75))
    _, _, noise_audio, noise_visual = mavil_inputs(model.config)
    for noise, mask, kept in (
        (noise_audio, model.mask_audio(noise_audio), 4),
        (noise_visual, model.mask_visual(noise_visual), 2),
    ):
        for row, ids in zip(noise.tolist(), mask.ids_keep.tolist(), strict=True):
            assert ids == sorted(range(8), key=row.__getitem__)[:kept]


def test_whole_moments_can_be_removed():
    model = small_mavil(mask=MaskConfig(0.5, 0.5, "time"))  # type: ignore[arg-type]
    mask = model.mask_audio(mavil_inputs(model.config)[2]).mask.reshape(3, 4, 2)
    assert torch.equal(mask[..., 0], mask[..., 1])
    assert (mask[..., 0].sum(1) == 2).all()


@torch.no_grad()
def test_modalities_meet_in_the_fusion_blocks_alone():
    for model in (small_mavil(), small_mavil(bottleneck_tokens=2, fusion_depth=2)):
        fbank, frames, _, _ = mavil_inputs(model.config)
        other = frames.flip(0)
        one, two = model.encoder.towers(fbank, frames), model.encoder.towers(fbank, other)
        audio, visual = both(one)
        assert torch.equal(audio, both(two)[0])
        fused, otherwise = both(model.encoder.fusion(one)), both(model.encoder.fusion(two))
        assert not torch.allclose(fused[0], otherwise[0], atol=1e-3)
        alone = model.encoder(fbank)
        assert alone.visual is None
        assert alone.audio.shape == audio.shape
        silent = model.encoder(frames=frames)
        assert silent.audio is None
        assert silent.visual.shape == visual.shape


@torch.no_grad()
def test_bottleneck_fusion_equals_its_definition():
    fusion: Any = small_mavil(bottleneck_tokens=2, fusion_depth=2).encoder.fusion
    assert isinstance(fusion, BottleneckFusion)
    audio, visual = torch.randn(3, 5, 32), torch.randn(3, 4, 32)
    fused = fusion(MavilTokens(audio, visual))
    for b in range(3):
        a, v, z = audio[b], visual[b], fusion.bottleneck
        for block_a, block_v in zip(fusion.audio_blocks, fusion.visual_blocks, strict=True):
            seen_a, seen_v = block_a(torch.cat([a, z])[None])[0], block_v(torch.cat([v, z])[None])[0]
            a, v, z = seen_a[:5], seen_v[:4], (seen_a[5:] + seen_v[4:]) / 2
        torch.testing.assert_close(both(fused)[0][b], a)
        torch.testing.assert_close(both(fused)[1][b], v)


def test_a_single_frame_is_a_film_of_pictures():
    model = small_mavil(frames=1, mask=MaskConfig(0.5, 0.5))
    assert model.config.visual_cells == (1, 2, 2)
    assert model.config.visual_patch_dim == 16 * 16 * 3
    view = model(*mavil_inputs(model.config))
    assert view.decoded_visual.shape == (3, 4, 16)


def test_recomputed_activations_change_nothing():
    plain, recomputed = small_mavil(), small_mavil(activation_checkpointing=True)
    found = []
    for model in (plain, recomputed):
        view = model(*mavil_inputs(model.config))
        (view.decoded_audio.square().mean() + view.decoded_visual.square().mean()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_wrong_inputs_are_named():
    model = small_mavil()
    fbank, frames, _, _ = mavil_inputs(model.config)
    with pytest.raises(ValueError, match="needs fbank, frames or both"):
        model.encoder()
    with pytest.raises(ValueError, match=r"fbank has shape .*audio_length, num_mel_bins"):
        model.encoder(fbank[:, 1:])
    with pytest.raises(ValueError, match=r"frames has shape .*\(4, 3, 32, 32\)"):
        model.encoder(frames=frames[:, :2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"frames": 3}, "frames is 3; it must be 1 or a multiple of tubelet_frames 2"),
        ({"frames": 0}, "frames is 0"),
        ({"tubelet_frames": 0}, "tubelet_frames is 0"),
        ({"image_size": 33}, "image_size is 33"),
        ({"audio_length": 65}, "audio_length is 65"),
        ({"num_heads": 5}, "embed_dim 32 must be a multiple of num_heads 5"),
        ({"decoder_embed_dim": 24}, "decoder_embed_dim is 24; 3-D sin-cos positions need a multiple of 16"),
        ({"bottleneck_tokens": -1}, "bottleneck_tokens is -1"),
        ({"bottleneck_tokens": 2, "fusion_depth": 0}, "bottleneck_tokens is 2 and fusion_depth 0"),
        ({"depth": -1}, "depth is -1"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0"),
        ({"mask": MaskConfig(0.95, 0.5)}, "mask.audio_ratio 0.95 leaves no audio token"),
        ({"name": "mavil_tini"}, "unknown model 'mavil_tini'; did you mean mavil_tiny"),
    ],
)
def test_impossible_settings_are_named(overrides: dict[str, Any], message):
    settings: dict[str, Any] = {"name": "mavil_tiny", **SMALL_MAVIL, **overrides}
    with pytest.raises(ValueError, match=message):
        MavilModelConfig(**settings)


def test_the_published_sizes():
    config = MavilModelConfig("mavil_base")
    assert (config.num_audio_tokens, config.num_visual_tokens) == (512, 784)
    assert (config.num_kept_audio, config.num_kept_visual) == (102, 156)
    assert (config.audio_patch_dim, config.visual_patch_dim) == (256, 1536)
