"""Encoder, decoder and masked autoencoder: against an independent build, and their invariants."""

import pytest
import torch
from support.small_models import SMALL, full_loss, gradients, inputs, small_model
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from models import AudioVisualEncoder, AudioVisualMAE, CavMaeModelConfig
from models.cav_mae.config import PRESETS
from models.classifier import AudioVisualClassifier
from models.layers.blocks import attend


def timm_block(state, width, heads, norm1="norm1.", norm2="norm2."):
    block = TimmBlock(width, heads, qkv_bias=True)
    names = {"norm1.": norm1, "norm2.": norm2}
    block.load_state_dict(
        {key: state[names.get(key[:6], key[:6]) + key[6:]] for key in block.state_dict()}, strict=True
    )
    return block


def randomized(model):
    """Norms, biases and tokens away from 0 and 1, so that each counts."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


@pytest.mark.parametrize("joint_depth", [0, 1, 2, 3])
def test_encoder_equals_timm_blocks_in_sequence(joint_depth):
    encoder = randomized(small_model(joint_depth=joint_depth)).encoder
    fbank, frames, _, _ = inputs(encoder.config)
    streams = encoder(fbank, frames)
    tokens = {}
    for name, x in (("audio", fbank.transpose(1, 2)[:, None]), ("visual", frames)):
        own = getattr(encoder, name)
        weight = own.patch_embed.weight.reshape(32, 16, 16, -1).permute(0, 3, 1, 2)
        x = nn.functional.conv2d(x, weight, own.patch_embed.bias, stride=16).flatten(2).transpose(1, 2)
        x = x + own.pos_embed + own.modality_embed
        for block in own.blocks:
            x = timm_block(block.state_dict(), 32, 2)(x)
        tokens[name] = x
    tokens["joint"] = torch.cat([tokens["audio"], tokens["visual"]], dim=1)
    for name, x in tokens.items():
        for block in encoder.joint_blocks:
            x = timm_block(block.state_dict(), 32, 2, f"norm1.{name}.", f"norm2.{name}.")(x)
        x = getattr(encoder.norm, name)(x)
        torch.testing.assert_close(getattr(streams, name), x, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_gets_a_gradient(name):
    model = AudioVisualMAE(CavMaeModelConfig(name, image_size=32, audio_length=32, num_mel_bins=32))
    full_loss(model, inputs(model.config, batch=2)).backward()
    for parameter_name, gradient in gradients(model).items():
        assert gradient.abs().max() > 0, parameter_name


def test_kept_tokens_are_those_of_the_ids():
    encoder = small_model(modality_depth=0, joint_depth=0).encoder
    fbank, frames, _, _ = inputs(encoder.config)
    everything = encoder(fbank, frames)
    keep = torch.tensor([[3, 0], [1, 2], [7, 4]])
    some = encoder(fbank, frames, keep_audio=keep)
    for b in range(3):
        torch.testing.assert_close(some.audio[b], everything.audio[b, keep[b]])
    assert some.joint.shape[1] == 2 + encoder.config.num_visual_tokens


def test_a_batch_equals_its_samples():
    model = small_model().eval()
    batch = inputs(model.config)
    together = model(*batch)
    for i in range(3):
        alone = model(*(x[i : i + 1] for x in batch))
        torch.testing.assert_close(together.pred_audio[i : i + 1], alone.pred_audio, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.pred_visual[i : i + 1], alone.pred_visual, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.embed_audio[i : i + 1], alone.embed_audio, atol=1e-5, rtol=1e-5)


def test_streams_do_not_see_each_other():
    model = small_model()
    fbank, frames, *noise = inputs(model.config)
    before, after = model(fbank, frames, *noise), model(fbank, frames + 1, *noise)
    assert torch.equal(before.latents.audio, after.latents.audio)
    assert not torch.equal(before.latents.joint, after.latents.joint)


def test_removed_patches_do_not_reach_the_model():
    model = small_model()
    fbank, frames, *noise = inputs(model.config)
    out = model(fbank, frames, *noise)
    patches = model.patchify_audio(fbank)
    changed = model.unpatchify_audio(torch.where(out.mask_audio[:, :, None] == 1, 9.0, patches))
    assert not torch.equal(changed, fbank)
    assert torch.equal(model(changed, frames, *noise).pred_audio, out.pred_audio)


def test_parts_not_asked_for_are_not_computed():
    model = small_model()
    batch = inputs(model.config)
    ran = []
    for name in ("decoder", "encoder.norm.joint", "encoder.norm.audio", "encoder.norm.visual"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    contrast_only = model(*batch, reconstruct=False)
    assert ran == ["encoder.norm.audio", "encoder.norm.visual"]
    assert contrast_only.pred_audio is contrast_only.latents.joint is None
    ran.clear()
    mae_only = model(*batch, contrast=False)
    assert ran == ["encoder.norm.joint", "decoder"]
    assert mae_only.embed_audio is mae_only.embed_visual is None
    both = model(*batch)
    torch.testing.assert_close(both.pred_visual, mae_only.pred_visual)
    torch.testing.assert_close(both.embed_audio, contrast_only.embed_audio)


def test_embed_takes_what_is_present():
    encoder = small_model().encoder
    fbank, frames, _, _ = inputs(encoder.config)
    both = encoder.embed(fbank, frames[:, None])
    sound, picture = encoder.embed(fbank, None), encoder.embed(None, frames[:, None])
    assert sound.visual is sound.joint is picture.audio is picture.joint is None
    torch.testing.assert_close((sound.audio, picture.visual), (both.audio, both.visual), atol=0, rtol=0)


def test_bfloat16_autocast_is_close_to_float32():
    model = small_model()
    batch = inputs(model.config)
    exact = full_loss(model, batch)
    exact.backward()
    expected = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = full_loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32
        cosine = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.95, name


def test_bfloat16_attention_on_a_cpu_is_attention():
    exact = torch.randn(3, 3, 2, 9, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rounded = exact.detach().bfloat16().requires_grad_()
    expected = nn.functional.scaled_dot_product_attention(exact[0], exact[1], exact[2])
    result = attend(rounded[0], rounded[1], rounded[2])
    torch.testing.assert_close(result.float(), expected, atol=0.02, rtol=0.02)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_grad = torch.autograd.grad((expected * weights).sum(), exact)[0]
    result_grad = torch.autograd.grad((result * weights).sum(), rounded)[0]
    torch.testing.assert_close(result_grad.float(), expected_grad, atol=0.05, rtol=0.05)


def test_activation_checkpointing_changes_no_gradient():
    found = []
    for recompute in (False, True):
        model = small_model(activation_checkpointing=recompute)
        full_loss(model, inputs(model.config)).backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_no_weight_decay_names_parameters():
    for model in (small_model(), AudioVisualClassifier(CavMaeModelConfig("cav_mae_tiny", **SMALL), 3)):
        names = model.no_weight_decay()
        assert names <= {name for name, _ in model.named_parameters()}
        assert {"encoder.audio.modality_embed", "encoder.visual.modality_embed"} <= names


def test_patches_round_trip():
    model = small_model()
    fbank, frames, _, _ = inputs(model.config)
    assert torch.equal(model.unpatchify_audio(model.patchify_audio(fbank)), fbank)
    assert torch.equal(model.unpatchify_visual(model.patchify_visual(frames)), frames)
    # Row 1, column 2 of the audio grid: mel bins 16..31 at frames 32..47.
    expected = fbank[0, 32:48, 16:32].T.flatten()
    assert torch.equal(model.patchify_audio(fbank)[0, 1 * 4 + 2], expected)


def test_wrong_inputs_are_named():
    encoder = AudioVisualEncoder(CavMaeModelConfig("cav_mae_tiny", **SMALL))
    with pytest.raises(ValueError, match="neither"):
        encoder()
    with pytest.raises(ValueError, match="audio_length"):
        encoder(torch.zeros(2, 63, 32))
    with pytest.raises(ValueError, match="image_size"):
        encoder(frames=torch.zeros(2, 3, 32, 48))
    with pytest.raises(ValueError, match="num_classes"):
        AudioVisualClassifier(encoder.config, 0)
