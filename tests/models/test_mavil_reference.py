"""MAViL's encoder is the published one, number for number."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models import AudioFrontEnd, AudioVisualClassifier, FbankConfig
from models.layers.masking import keep_columns_and_rows
from models.mavil import MAVIL_FBANK
from models.mavil.encoder import MavilEncoder, mean_of_patches
from models.mavil.published import infer_config, to_ours, to_published


class Reference(NamedTuple):
    encoder: MavilEncoder
    rest: dict[str, Tensor]
    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def expect(self, name: str, value: Tensor) -> None:
        torch.testing.assert_close(value, self.tensors[f"expect.{name}"], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def ref() -> Reference:
    default = Path(__file__).parents[1] / "reference" / "mavil_encoder_a"
    path = Path(os.environ.get("EARSIGHT_REFERENCE_MAVIL_ENCODER", default))
    tensors, config = load_file(f"{path}.safetensors"), json.loads(Path(f"{path}.json").read_text())["config"]
    published = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    found = infer_config(
        published,
        num_heads=config["num_heads"],
        image_size=config["video_size"],
        num_mel_bins=config["audio_size"][1],
        layer_norm_eps=config["layer_norm_eps"],
    )
    arch = found.architecture
    assert [found.tubelet, found.patch_size, found.patch_size] == config["tubelet"]
    assert (found.frames, found.audio_length) == (config["frames"], config["audio_size"][0])
    assert (arch.depth, arch.fusion_depth, arch.embed_dim) == (
        config["depth"],
        config["fusion_depth"],
        config["embed_dim"],
    )
    ours, left = to_ours(published)
    assert not left
    encoder = MavilEncoder(found)
    encoder.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in ours.items() if k.startswith("encoder.")}
    )
    return Reference(encoder.eval(), {k: v for k, v in ours.items() if "encoder." not in k}, tensors, config)


@torch.no_grad()
def test_tokens_of_every_block(ref):
    seen: dict[str, Tensor] = {}

    def keep(name: str, first: int):
        def hook(_, args, output) -> None:
            seen[name] = args[0][:, first:]
            stem, number = name.rsplit(".", 1)
            seen[f"{stem}.{int(number) + 1}"] = output[:, first:]

        return hook

    blocks = {"audio_tokens": ref.encoder.audio.blocks, "video_tokens": ref.encoder.visual.blocks}
    blocks["fusion_tokens"] = ref.encoder.fusion.blocks
    for name, parts in blocks.items():
        for i, block in enumerate(parts):
            block.register_forward_hook(keep(f"{name}.{i}", 0 if name == "fusion_tokens" else 1))
    ref.encoder(ref.tensors["input.fbank"][:, 0], ref.tensors["input.video"].transpose(1, 2))
    expected = [name.removeprefix("expect.") for name in ref.tensors if "_tokens." in name]
    assert {name.split(".")[0] for name in expected} == set(blocks)
    for name in expected:
        ref.expect(name, seen[name])


@torch.no_grad()
def test_pooled_vectors_and_logits(ref):
    towers = ref.encoder.towers(ref.tensors["input.fbank"][:, 0], ref.tensors["input.video"].transpose(1, 2))
    ref.expect("audio_pooled", mean_of_patches(towers.audio))
    ref.expect("video_pooled", mean_of_patches(towers.visual))
    inputs = ref.tensors["input.fbank"][:, 0], ref.tensors["input.video"].transpose(1, 2)
    if "head.bias" in ref.rest:
        classifier = AudioVisualClassifier(ref.encoder.config, len(ref.rest["head.bias"]), ref.encoder)
        classifier.load_state_dict(ref.rest, strict=False)
        ref.expect("fusion_pooled", classifier.features(*inputs))
        ref.expect("logits", classifier(*inputs))
    else:
        ref.expect("fusion_pooled", ref.encoder.features(*inputs))


def test_fbank(ref):
    waveform = ref.tensors["input.waveform"][None]
    assert (MAVIL_FBANK.mean, MAVIL_FBANK.std) == (ref.config["fbank_mean"], 2 * ref.config["fbank_std"])
    fbank = AudioFrontEnd(FbankConfig(mean=MAVIL_FBANK.mean, std=MAVIL_FBANK.std))(
        waveform, torch.tensor([waveform.shape[1]])
    )[0]
    expected = ref.tensors["expect.fbank_every_8th"]
    ref.expect("fbank_every_8th", fbank[: 8 * len(expected) : 8])


def test_mask_of_whole_columns_and_rows(ref):
    ids = keep_columns_and_rows(
        ref.tensors["input.mask2d_noise_time"],
        ref.tensors["input.mask2d_noise_frequency"],
        ref.config["mask2d"]["time"],
        ref.config["mask2d"]["frequency"],
    )
    tokens = ref.tensors["input.mask2d_tokens"]
    ref.expect("mask2d_kept", tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2])))


def test_weights_go_out_as_they_came_in(ref):
    out = to_published(ref.encoder)
    for name, value in out.items():
        assert torch.equal(value, ref.tensors[f"model.{name}"]), name
    heads = {name for name in ref.tensors if name.startswith(("model.fc_norm", "model.head"))}
    assert {f"model.{name}" for name in out} | heads == {n for n in ref.tensors if n.startswith("model.")}
