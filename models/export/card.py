"""The model card of an exported folder: what it is, how to use it in a few lines, where it comes from."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.cav_mae.config import CavMaeModelConfig
from models.frontend import IMAGENET_MEAN, IMAGENET_STD, FbankConfig
from models.registry import family_of
from models.weights.description import Description
from terminal import spelt_out


def model_card(description: Description, result: str, usage: str) -> str:
    """The text of ``README.md``.

    Args:
        description: What the weights say about themselves.
        result: What was written and how exact it is.
        usage: Of this format.
    """
    model = description.model
    assert description.fbank is not None
    parts = [
        "# Audio-visual encoders",
        f"{model.name} trained with Earsight: {model.summary}.",
        "\n\n".join(map(plain_text, result.splitlines())),
        f"## Use\n\nFrom the folder that this one is in.\n\n{usage}",
        f"## Input\n\n{_sound(description.fbank)}\n\nFrames: shorter side to {model.image_size} pixels, "
        f"bicubic, centre square, RGB in 0 … 1, less {IMAGENET_MEAN}, over {IMAGENET_STD}.",
        f"## Origin\n\n{_table(description.provenance)}",
    ]
    if description.labels:
        parts.append(f"## Classes of the training data\n\n{', '.join(map(plain_text, description.labels))}")
    return "\n\n".join(parts) + "\n"


def _sound(fbank: FbankConfig) -> str:
    return (
        f"Sound: mono, {fbank.sample_rate} Hz, mean subtracted; Kaldi log-mel with {fbank.num_mel_bins} "
        f"bins, {fbank.frame_length_ms:g} ms Hann windows every {fbank.frame_shift_ms:g} ms; cut or padded "
        f"with zeros to {fbank.target_length} frames; then less {fbank.mean:g}, over {fbank.std:g}."
    )


def plain_text(value: object) -> str:
    """Text of others as text: no markup, no link, no line or cell of its own."""
    text = spelt_out(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(value)))
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", html.escape(text, quote=False))


def _table(values: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {plain_text(key)} | {plain_text(value)} |" for key, value in values.items() if value is not None
    )
    return f"| | |\n|---|---|\n{rows}"


def _code(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


def _read_sound(fbank: FbankConfig) -> str:
    return (
        "wave = torch.from_numpy(soundfile.read('sound.wav', dtype='float32')[0])"
        f"  # mono, {fbank.sample_rate} Hz"
    )


def earsight_usage(folder: Path, description: Description) -> str:
    """For the ``earsight`` format."""
    size = description.model.image_size
    return "With Earsight installed, or from a checkout of it:\n\n" + _code(
        "from pathlib import Path",
        "from datasets.decode import decode_audio, decode_frame",
        "from models import load_pretrained",
        "",
        f"encoders = load_pretrained({folder.name!r}).requires_grad_(False)",
        "waveform = decode_audio(Path('sound.wav').read_bytes())[None]  # (B, S) int16",
        f"frames = decode_frame(bytearray(Path('picture.jpg').read_bytes()), {size})[None]  # (B, 3, H, W) uint8",
        "vectors = encoders(waveform, frames=frames)  # num_samples=(B,) true lengths where B > 1",
        "vectors.audio, vectors.visual, vectors.joint  # (B, D) each; leave out sound or frames at will",
    )


def timm_usage(folder: Path, description: Description, modalities: Sequence[str]) -> str:
    """For the ``timm`` format, of the modalities that were written."""
    fbank = description.fbank
    assert fbank is not None
    pictures = _code(
        "import timm",
        "from PIL import Image",
        "",
        f"visual = timm.create_model('local-dir:{folder.name}/visual', pretrained=True).eval()",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(visual))",
        "vector = visual(transform(Image.open('picture.jpg').convert('RGB'))[None])  # (B, D)",
    )
    sound = _code(
        "import soundfile, timm, torch",
        "import torch.nn.functional as F",
        "from torchaudio.compliance import kaldi",
        "",
        f"audio = timm.create_model('local-dir:{folder.name}/audio', pretrained=True).eval()",
        _read_sound(fbank),
        f"fbank = kaldi.fbank((wave - wave.mean())[None], htk_compat=True, sample_frequency={fbank.sample_rate},",
        f"    use_energy=False, window_type='hanning', num_mel_bins={fbank.num_mel_bins}, dither=0.0, "
        f"frame_length={fbank.frame_length_ms:g}, frame_shift={fbank.frame_shift_ms:g})",
        f"fbank = F.pad(fbank, (0, 0, 0, {fbank.target_length} - len(fbank)))  # cuts what is longer",
        f"vector = audio(((fbank {-fbank.mean:+g}) / {fbank.std:g}).T[None, None])  # (B, 1, mel bins, frames)",
    )
    padding = (
        "A sound shorter than the model's input is padded, and these ViTs see the padding; Earsight's own "
        "`load_pretrained` leaves its tokens out, so there the vectors of short sounds are others."
    )
    parts = [
        "No code of Earsight is needed.",
        *([pictures] if "visual" in modalities else []),
        sound,
        padding,
    ]
    return "\n\n".join(parts)


def published_usage(folder: Path, description: Description, num_classes: int | None) -> str:
    """For the ``published`` format."""
    model = description.model
    if not isinstance(model, CavMaeModelConfig):
        published = family_of(model.name).published
        return f"The names and layout of {published.title if published else model.name}."
    arch = model.architecture
    name, sizes = "CAVMAE", ""
    if num_classes is not None:
        name, sizes = "CAVMAEFT", f"label_dim={num_classes}, "
    sizes += f"img_size={model.image_size}, audio_length={model.audio_length}, embed_dim={arch.embed_dim}"
    sizes += f", modality_specific_depth={arch.modality_depth}, num_heads={arch.num_heads}"
    decoder = () if num_classes is not None else (
        f"    decoder_embed_dim={arch.decoder_embed_dim}, decoder_depth={arch.decoder_depth}, "
        f"decoder_num_heads={arch.decoder_num_heads},",
    )  # fmt: skip
    return "In `src/` of the published code (https://github.com/YuanGongND/cav-mae):\n\n" + _code(
        "import torch",
        f"from models import {name}",
        "",
        f"model = {name}({sizes},",
        *decoder,
        f"    mlp_ratio={model.mlp_ratio:g}, norm_pix_loss={model.norm_pix_loss})",
        "model = torch.nn.DataParallel(model)",
        f"model.load_state_dict(torch.load('{folder.name}/cav_mae.pth', weights_only=True), strict=True)",
    )


def program_usage(folder: Path, description: Description) -> str:
    """For the ``torch_export`` format."""
    model, fbank = description.model, description.fbank
    assert fbank is not None
    views = "B, " if model.num_frames == 1 else f"B, {model.num_frames}, "
    program = _code(
        "import soundfile, torch",
        "",
        f"front_end = torch.export.load('{folder.name}/front_end.pt2').module()",
        f"audio = torch.export.load('{folder.name}/audio.pt2').module()",
        _read_sound(fbank) + f", at most {fbank.num_samples} samples",
        f"padded = torch.nn.functional.pad(wave, (0, {fbank.num_samples} - len(wave)))[None]",
        "fbank = front_end(padded, torch.tensor([len(wave)]))  # with true lengths (B,)",
        f"vectors = audio(fbank)  # log-mel (B, {model.audio_length}, {model.num_mel_bins}) -> (B, D)",
        f"# visual.pt2 takes normalised frames ({views}3, {model.image_size}, {model.image_size}); joint.pt2 both",
    )
    runtime = _code(
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession('{folder.name}/audio.onnx')",
        "vectors = session.run(None, {'fbank': fbank.numpy()})[0]",
    )
    return f"{program}\n\nWith the ONNX files, if they are here:\n\n{runtime}"
