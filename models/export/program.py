"""The encoders and the sound's front end as ``torch.export`` programs, the encoders as ONNX files too.

All take any number of clips at a time.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.encoders import Encoder
from models.frontend import AudioFrontEnd, FbankConfig
from models.weights.errors import WeightsError

#: Largest difference between ONNX Runtime and PyTorch that an ONNX file may have to be kept.
ONNX_TOLERANCE = 1e-4
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class PooledEncoder(nn.Module):
    """A stream of the encoder and its mean over tokens, taking plain tensors.

    Args:
        encoder: The encoder.
        stream: ``audio``, ``visual`` or ``joint``.
    """

    def __init__(self, encoder: Encoder[Any], stream: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.stream = stream

    @property
    def input_names(self) -> tuple[str, ...]:
        """What ``forward`` takes."""
        return {"audio": ("fbank",), "visual": ("frames",), "joint": ("fbank", "frames")}[self.stream]

    def forward(self, *inputs: Tensor) -> Tensor:
        """The normalised fbank (B, T, F), the normalised frames (B, 3, H, W) or both -> (B, D).

        Of an encoder that takes several frames at a time, frames are (B, N, 3, H, W).
        """
        given = dict(zip(self.input_names, inputs, strict=True))
        return getattr(self.encoder.embed(given.get("fbank"), given.get("frames")), self.stream)


def example_inputs(model: PooledEncoder, batch: int) -> tuple[Tensor, ...]:
    """Random inputs of the right shapes."""
    config, generator = model.encoder.config, torch.Generator().manual_seed(batch)
    views = (config.num_frames,) if config.num_frames > 1 else ()
    shapes = {
        "fbank": (batch, config.audio_length, config.num_mel_bins),
        "frames": (batch, *views, 3, config.image_size, config.image_size),
    }
    return tuple(torch.randn(*shapes[name], generator=generator) for name in model.input_names)


def missing_onnx_packages() -> list[str]:
    """The packages for ONNX that are not installed."""
    return [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]


@torch.no_grad()
def export_programs(
    encoder: Encoder[Any], fbank: FbankConfig, folder: Path, *, onnx: bool
) -> dict[str, float]:
    """Writes ``audio``, ``visual`` and ``joint`` as ``.pt2`` and, if asked for, ``.onnx``; compares them.

    ``front_end.pt2`` makes the fbank of waveforms, float in [-1, 1] padded to a fixed length, and their true
    lengths.

    Args:
        encoder: In evaluation mode, on the CPU.
        fbank: The front end's settings.
        folder: Where to.
        onnx: Whether ONNX files are wanted.

    Returns:
        The largest difference from our own model by file, on batches of other sizes than the exported one.

    Raises:
        WeightsError: A package for ONNX is missing, or ONNX Runtime differs by more than `ONNX_TOLERANCE`.
    """
    if onnx and missing_onnx_packages():
        raise WeightsError(
            f"ONNX needs {', '.join(missing_onnx_packages())}: pip install them, or give --no_onnx"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own exporters warn of what they themselves use
        return _export_all(encoder, fbank, folder, onnx)


def _export_all(encoder: Encoder[Any], fbank: FbankConfig, folder: Path, onnx: bool) -> dict[str, float]:
    differences = {"front_end.pt2": _export_front_end(AudioFrontEnd(fbank).eval(), folder / "front_end.pt2")}
    for stream in ("audio", "visual", "joint"):
        model = PooledEncoder(encoder, stream).eval()
        program = _program(model)
        torch.export.save(program, folder / f"{stream}.pt2")
        loaded = torch.export.load(folder / f"{stream}.pt2").module()
        differences[f"{stream}.pt2"] = _difference(model, loaded)
        if onnx:
            differences[f"{stream}.onnx"] = _export_onnx(model, program, folder / f"{stream}.onnx")
    return differences


def _export_front_end(front_end: AudioFrontEnd, path: Path) -> float:
    """Writes the program; the largest difference on sounds of several lengths."""

    def sounds(*lengths: int) -> tuple[Tensor, Tensor]:
        inside = torch.arange(full) < torch.tensor(lengths)[:, None]
        noise = torch.rand(len(lengths), full, generator=torch.Generator().manual_seed(0)) - 0.5
        return noise * inside, torch.tensor(lengths)

    full, batch = front_end.config.num_samples, Dim("batch", min=1, max=65536)
    shapes = {"waveform": {0: batch}, "num_samples": {0: batch}}
    torch.export.save(torch.export.export(front_end, sounds(full, full), dynamic_shapes=shapes), path)
    program = torch.export.load(path).module()
    given = sounds(full, full // 2, full // 3)
    return (program(*given) - front_end(*given)).abs().max().item()


def _program(model: PooledEncoder) -> torch.export.ExportedProgram:
    batch = Dim("batch", min=1, max=65536)
    shapes = {"inputs": tuple({0: batch} for _ in model.input_names)}
    return torch.export.export(model, example_inputs(model, 2), dynamic_shapes=shapes)


def _export_onnx(model: PooledEncoder, program: torch.export.ExportedProgram, path: Path) -> float:
    import onnxruntime

    torch.onnx.export(
        program, (), path, input_names=list(model.input_names), output_names=["embedding"], verbose=False
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(model.input_names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    difference = _difference(model, run)
    if not difference <= ONNX_TOLERANCE:
        raise WeightsError(f"{path}: ONNX Runtime differs by {difference:.1e}, more than {ONNX_TOLERANCE:g}")
    return difference


def _difference(model: PooledEncoder, other: Callable[..., Tensor]) -> float:
    """The largest difference of the vectors over batches of 1 and 3."""
    batches = [example_inputs(model, batch) for batch in (1, 3)]
    return max((model(*inputs) - other(*inputs)).abs().max().item() for inputs in batches)
