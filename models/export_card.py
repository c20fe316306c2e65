"""The model card of an exported folder: what it is, how to use it in a few lines, where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.description import Description
from models.frontend import IMAGENET_MEAN, IMAGENET_STD, FbankConfig


def model_card(description: Description, result: str, usage: str) -> str:
    """The text of ``README.md``.

    Args:
        description: What the weights say about themselves.
        result: What was written and how exact it is.
        usage: Of this format.
    """
    model = description.model
    arch = model.architecture
    assert description.fbank is not None
    parts = [
        "# Audio-visual encoders",
        f"{model.name} trained with Earsight: width {arch.embed_dim}, {arch.num_heads} heads, "
        f"{arch.modality_depth} blocks for each modality and {arch.joint_depth} joint.",
        result.replace("\n", "\n\n"),
        f"## Use\n\n{usage}",
        f"## Input\n\n{_sound(description.fbank)}\n\nFrames: shorter side to {model.image_size} pixels, "
        f"bicubic, centre square, RGB in 0 … 1, less {IMAGENET_MEAN}, over {IMAGENET_STD}.",
        f"## Origin\n\n{_table(description.provenance)}",
    ]
    if description.labels:
        parts.append(f"## Classes of the training data\n\n{', '.join(description.labels)}")
    return "\n\n".join(parts) + "\n"


def _sound(fbank: FbankConfig) -> str:
    return (
        f"Sound: mono, {fbank.sample_rate} Hz, mean subtracted; Kaldi log-mel with {fbank.num_mel_bins} "
        f"bins, {fbank.frame_length_ms:g} ms Hann windows every {fbank.frame_shift_ms:g} ms; cut or padded "
        f"with zeros to {fbank.target_length} frames; then less {fbank.mean:g}, over {fbank.std:g}."
    )


def _table(values: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in values.items() if value is not None)
    return f"| | |\n|---|---|\n{rows}"


def _code(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


def _fbank_lines(fbank: FbankConfig) -> tuple[str, ...]:
    return (
        f"wave = wave - wave.mean()  # (1, samples) float in [-1, 1] at {fbank.sample_rate} Hz",
        f"fbank = kaldi.fbank(wave, htk_compat=True, sample_frequency={fbank.sample_rate}, use_energy=False,",
        f"    window_type='hanning', num_mel_bins={fbank.num_mel_bins}, dither=0.0, "
        f"frame_length={fbank.frame_length_ms:g}, frame_shift={fbank.frame_shift_ms:g})",
        f"fbank = F.pad(fbank, (0, 0, 0, {fbank.target_length} - len(fbank)))  # cuts what is longer",
        f"fbank = (fbank - {fbank.mean:g}) / {fbank.std:g}",
    )


def earsight_usage(folder: Path) -> str:
    """For the ``earsight`` format."""
    return _code(
        "from models import load_pretrained",
        "",
        f"encoders = load_pretrained({folder.name!r})",
        "vectors = encoders(waveform, num_samples, frames)  # int16 (B, S), (B,), uint8 (B, 3, H, W)",
        "vectors.audio, vectors.visual, vectors.joint  # (B, D) each; leave out sound or frames at will",
    )


def timm_usage(folder: Path, description: Description) -> str:
    """For the ``timm`` format."""
    assert description.fbank is not None
    pictures = _code(
        "import timm",
        "",
        f"visual = timm.create_model('local-dir:{folder.name}/visual', pretrained=True).eval()",
        "settings = timm.data.resolve_model_data_config(visual)",
        "vector = visual(timm.data.create_transform(**settings)(picture)[None])  # a PIL picture",
    )
    sound = _code(
        "import timm, torch.nn.functional as F, torchaudio.compliance.kaldi as kaldi",
        "",
        f"audio = timm.create_model('local-dir:{folder.name}/audio', pretrained=True).eval()",
        *_fbank_lines(description.fbank),
        "vector = audio(fbank.T[None, None])  # (1, 1, mel bins, frames)",
    )
    padding = (
        "A sound shorter than the model's input is padded, and these ViTs see the padding; Earsight's own "
        "`load_pretrained` leaves its tokens out, so there the vectors of short sounds are others."
    )
    return f"No code of Earsight is needed.\n\n{pictures}\n\n{sound}\n\n{padding}"


def published_usage(folder: Path) -> str:
    """For the ``published`` format."""
    return _code(
        "import torch",
        "",
        f"state = torch.load('{folder.name}/cav_mae.pth', weights_only=True)",
        "model = torch.nn.DataParallel(CAVMAE(...))  # of the published code, at these sizes",
        "model.load_state_dict(state, strict=True)",
    )


def program_usage(folder: Path, description: Description) -> str:
    """For the ``torch_export`` format."""
    model, fbank = description.model, description.fbank
    assert fbank is not None
    program = _code(
        "import torch",
        "",
        f"front_end = torch.export.load('{folder.name}/front_end.pt2').module()",
        f"fbank = front_end(waveform, num_samples)  # float in [-1, 1] (B, {fbank.num_samples}), true lengths (B,)",
        f"audio = torch.export.load('{folder.name}/audio.pt2').module()",
        f"vectors = audio(fbank)  # log-mel (B, {model.audio_length}, {model.num_mel_bins}) -> (B, D)",
        f"# visual.pt2 takes frames (B, 3, {model.image_size}, {model.image_size}); joint.pt2 both",
    )
    runtime = _code(
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession('{folder.name}/audio.onnx')",
        "vectors = session.run(None, {'fbank': fbank})[0]  # a float32 NumPy array",
    )
    return f"{program}\n\nWith the ONNX files, if they are here:\n\n{runtime}"
