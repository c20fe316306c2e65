"""Trained weights in forms that others open: ``python -m models.export RUN OUT --format FORMAT``.

- ``earsight``: the encoders in one file that carries its config, preprocessing, classes and origin;
- ``timm``: two folders, audio and visual, that ``timm.create_model("local-dir:…", pretrained=True)`` opens;
- ``published``: a file that the family's published code loads strictly;
- ``torch_export``: ``torch.export`` programs of the encoders, and ONNX files of the same.

Every folder has a model card, ``README.md``, with how to use it and where it comes from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from atomic import check_writable, write_atomically
from home_paths import command_line
from models.classifier import AudioVisualClassifier
from models.config import ModelConfig
from models.convert import add_source_arguments, parse_settings, save_published
from models.encoders import Encoder
from models.export.card import (
    earsight_usage,
    model_card,
    program_usage,
    published_usage,
    timm_usage,
)
from models.export.program import ONNX_TOLERANCE, export_programs
from models.export.timm import PlainTowers, export_timm, plain_towers
from models.pretrained import describe, load_model, named_state
from models.registry import family_of
from models.weights.description import Description, save_described
from models.weights.errors import WeightsError
from models.weights.sources import SourceKind, SourceWeights, read_weights
from models.weights.tensor_files import WEIGHTS_NAME, read_json
from terminal import show_control_characters


def export(
    source: str, target: Path, form: str, *, onnx: bool = True, allow: Sequence[str] = (), **known: Any
) -> str:
    """Exports a trained model into a new folder.

    Args:
        source: See `models.weights.sources.read_weights`.
        target: The folder to write.
        form: ``earsight``, ``timm``, ``published`` or ``torch_export``.
        onnx: Whether ``torch_export`` writes ONNX files too.
        allow: Patterns of tensors that may be missing or left out.
        known: Fields of the model's config that the source doesn't tell.

    Returns:
        What was written, and how far it is from our own model.

    Raises:
        WeightsError: The source can't be used, or the target is there already and not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target} is there already; name a new folder")
    found = read_weights(source)
    if found.kind is SourceKind.vit:
        raise WeightsError(f"{found.path} is a picture model, no trained audio-visual encoder")
    model, _ = load_model(found, allow, **known)
    labels = found.labels or training_labels(found)
    description = replace(describe(found, cast(ModelConfig, model.config)), labels=labels)
    target.mkdir(parents=True, exist_ok=True)
    result, usage = _FORMS[form](model.eval(), description, target, onnx)
    if labels is None and (data := found.provenance.get("data")):
        result += f"\nWithout the names of the training data's classes: {data} is not here, or has none."
    write_atomically(target / "README.md", model_card(description, result, usage))
    return result


def encoder_of(model: nn.Module) -> Encoder[Any]:
    """The model's encoder."""
    return model if isinstance(model, Encoder) else cast(Encoder[Any], model.encoder)


def training_labels(source: SourceWeights) -> tuple[str, ...] | None:
    """The label vocabulary of the shards a run was trained on, if these are still where they were."""
    data = source.provenance.get("data")
    if not isinstance(data, str) or not (Path(data) / "index.json").is_file():
        return None
    labels = read_json(Path(data) / "index.json").get("labels") or []
    return tuple(label["name"] for label in labels) or None


def _earsight(model: nn.Module, description: Description, folder: Path, onnx: bool) -> tuple[str, str]:
    state = named_state(encoder_of(model))
    values = save_described(folder / WEIGHTS_NAME, state, description)
    write_atomically(folder / "config.json", json.dumps(values, indent=1) + "\n")
    megabytes = (folder / WEIGHTS_NAME).stat().st_size / 1e6
    return f"The encoders, {len(state)} tensors, {megabytes:.0f} MB.", earsight_usage(folder, description)


def _timm(model: nn.Module, description: Description, folder: Path, onnx: bool) -> tuple[str, str]:
    encoder = encoder_of(model)
    if not isinstance(encoder, PlainTowers):
        raise WeightsError(
            f"{description.model.name} is no pair of plain ViTs that timm could open; use earsight"
        )
    differences = export_timm(encoder, description, folder)
    eps = encoder.config.layer_norm_eps
    lines = [
        f"{name}: timm's features differ from Earsight's by at most {value:.1e} of the largest feature."
        for name, value in differences.items()
    ]
    if "visual" not in plain_towers(encoder):
        lines.append("The tower for films is not among them: timm has no ViT over tubelets.")
    lines.append(
        f"LayerNorm's epsilon {eps:g} is timm's own; nothing else differs."
        if eps == 1e-6
        else f"The model's LayerNorm epsilon is {eps:g}, timm's 1e-06; the residual stream is scaled by "
        f"{(1e-6 / eps) ** 0.5:.4f}, which makes both the same function."
    )
    return "\n".join(lines), timm_usage(folder, description, plain_towers(encoder))


def _published(model: nn.Module, description: Description, folder: Path, onnx: bool) -> tuple[str, str]:
    family = family_of(description.model.name).name
    notes = save_published(model, folder / f"{family}.pth")
    classes = model.head.out_features if isinstance(model, AudioVisualClassifier) else None
    result = "\n".join(("The whole model in the published names.", *notes))
    return result, published_usage(folder, description, classes)


def _torch_export(model: nn.Module, description: Description, folder: Path, onnx: bool) -> tuple[str, str]:
    assert description.fbank is not None
    differences = export_programs(encoder_of(model), description.fbank, folder, onnx=onnx)
    write_atomically(folder / "config.json", json.dumps(description.to_json(), indent=1) + "\n")
    lines = [
        f"{name}: differs from Earsight's by at most {value:.1e}." for name, value in differences.items()
    ]
    lines.append(f"ONNX files are kept only within {ONNX_TOLERANCE:g}." if onnx else "Without ONNX files.")
    return "\n".join(lines), program_usage(folder, description)


_FORMS: dict[str, Callable[[nn.Module, Description, Path, bool], tuple[str, str]]] = {
    "earsight": _earsight,
    "timm": _timm,
    "published": _published,
    "torch_export": _torch_export,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Exports what the command line names."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m models.export", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="RUN", help="a run, checkpoint, exported model or published file")
    parser.add_argument("target", metavar="OUT", type=Path, help="a new folder")
    parser.add_argument("--format", choices=list(_FORMS), default="earsight", dest="form")
    parser.add_argument("--no_onnx", action="store_true", help="torch_export without ONNX files")
    add_source_arguments(parser)
    options = parser.parse_args(command_line(arguments))
    try:
        check_writable(options.target.parent)
        known = parse_settings(options.settings)
        onnx = not options.no_onnx
        print(export(options.source, options.target, options.form, onnx=onnx, allow=options.allow, **known))
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"wrote {options.target}, with its model card {options.target / 'README.md'}")
