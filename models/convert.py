"""Weights of any source as Earsight's or in the names their authors publish: ``python -m models.convert IN OUT``.

Prints what became of every tensor. An Earsight file is one safetensors file that describes itself; a
published one has the names, shapes and ``module.`` prefix that the published code loads strictly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from atomic import check_writable, replacing
from home_paths import command_line
from models.cav_mae.config import CavMaeModelConfig
from models.config import ModelConfig, unknown_name
from models.encoders import Encoder
from models.pretrained import describe, load_model, named_state
from models.registry import build_encoder, families, family_of
from models.weights.description import save_described
from models.weights.errors import WeightsError
from models.weights.published import PUBLISHED_EPS, published_limits, to_published
from models.weights.sources import read_weights
from models.weights.tensor_files import write_safetensors
from strict_yaml import load_yaml
from terminal import show_control_characters

_SUFFIXES = {"earsight": (".safetensors",), "published": (".safetensors", ".pth")}


def convert(
    source: str, target: Path, form: str, allow: Sequence[str] = (), known: dict[str, Any] | None = None
) -> str:
    """Converts a source to a file; returns the account of every tensor.

    Args:
        source: See `models.weights.sources.read_weights`.
        target: The file to write.
        form: ``earsight`` or ``published``.
        allow: Patterns of tensors that may be missing or left out.
        known: Fields of the model's config that the source doesn't tell.

    Raises:
        WeightsError: The source can't be read or does not fit, or the target's suffix is none of the form's.
    """
    if target.suffix not in _SUFFIXES[form]:
        raise WeightsError(f"{target} must end in {' or '.join(_SUFFIXES[form])} for --format {form}")
    check_writable(target.parent)
    found = read_weights(source)
    model, report = load_model(found, allow, **(known or {}))
    if form == "earsight":
        save_described(target, named_state(model), describe(found, cast(ModelConfig, model.config)))
        return str(report)
    return "\n  note: ".join((str(report), *save_published(model, target)))


def save_published(model: nn.Module, target: Path) -> list[str]:
    """Writes a model in the published names; returns what the published code makes of it that we don't.

    Raises:
        WeightsError: It is an encoder alone, which the published code has no model for.
    """
    family = family_of(cast(ModelConfig, model.config).name)
    if isinstance(model, Encoder) and not (family.published and family.published.encoder_alone):
        raise WeightsError(
            "the source holds the encoder alone; the published code loads a whole autoencoder or classifier: "
            "give the run or checkpoint"
        )
    config = cast(ModelConfig, model.config)
    if family.name != "cav_mae" and family.published is None:
        raise WeightsError(f"there is no published format of the family {family.name}; use --format earsight")
    state = family.published.to_published(model) if family.published else to_published(model)
    if target.suffix == ".safetensors":
        write_safetensors(target, state)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            torch.save(state, file)
    notes = family.published.limits(config) if family.published else []
    if not isinstance(config, CavMaeModelConfig):
        return notes
    notes, eps = published_limits(config) + notes, config.layer_norm_eps
    if eps != PUBLISHED_EPS:
        difference = _epsilon_difference(cast(Encoder[CavMaeModelConfig], model.encoder))
        notes.append(
            f"LayerNorm's epsilon is {eps:g} in this model and {PUBLISHED_EPS:g} in the published code, whose "
            f"features will differ by about {difference:.1e} of the largest"
        )
    return notes


@torch.no_grad()
def _epsilon_difference(encoder: Encoder[CavMaeModelConfig]) -> float:
    """How much pooled features change with the published epsilon, relative to the largest; on random input."""
    config, generator = encoder.config, torch.Generator().manual_seed(0)
    fbank = torch.randn(2, config.audio_length, config.num_mel_bins, generator=generator)
    frames = torch.randn(2, 3, config.image_size, config.image_size, generator=generator)
    other = build_encoder(replace(config, layer_norm_eps=PUBLISHED_EPS))
    other.load_state_dict(encoder.state_dict())
    ours, theirs = (model.cpu().features(fbank, frames) for model in (encoder, other))
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as fields of the model's config.

    Raises:
        ValueError: A key is unknown.
    """
    known = {f.name for family in families() for f in fields(family.config)} - {"name", "mask"}
    settings = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            raise unknown_name("model setting", key, known)
        settings[key] = load_yaml(value)
    return settings


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What every program that reads weights takes beside their place."""
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings",
        help="fields of the model that the file does not tell, such as num_heads=6 audio_length=512",
    )  # fmt: skip
    parser.add_argument(
        "--allow", nargs="+", default=[], metavar="PATTERN",
        help="tensors that may be missing, misshapen or left over, such as 'decoder.*'",
    )  # fmt: skip


class _Renamed(argparse.Action):
    """The earlier spelling of ``--format``: taken, and said so."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(f"{parser.prog}: note: {option_string} is now --format {values}", file=sys.stderr)
        setattr(namespace, self.dest, values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m models.convert", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="IN", help="a run, checkpoint, file, folder, or timm:NAME:FILE")
    parser.add_argument("target", metavar="OUT", type=Path, help="a .safetensors file (published: or .pth)")
    parser.add_argument("--format", choices=sorted(_SUFFIXES), default="earsight", dest="form")
    parser.add_argument(
        "--to", choices=sorted(_SUFFIXES), dest="form", action=_Renamed, help=argparse.SUPPRESS
    )
    add_source_arguments(parser)
    options = parser.parse_args(command_line(arguments))
    try:
        known = parse_settings(options.settings)
        print(convert(options.source, options.target, options.form, options.allow, known))
    except ValueError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print(f"wrote {options.target}")


if __name__ == "__main__":
    main()
