"""Where weights come from: recognises a file or folder by what is in it, and says what model it describes.

Taken are Earsight runs, checkpoints and exported files; published CAV-MAE files, pretrained and fine-tuned;
ImageNet MAE files and timm ViTs; and DeepSpeed folders of ZeRO 0, 1 and 2 with any of these in them. What
becomes of each tensor in a given model is `models.weights.initialize`'s part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from models.config import ModelConfig
from models.frontend import FbankConfig
from models.registry import PublishedFormat, families
from models.weights.classes import kept_classes
from models.weights.description import (
    METADATA_KEY,
    Description,
    parse_description,
    parse_fbank,
    parse_model,
    weights_hash,
)
from models.weights.errors import WeightsError
from models.weights.published import infer_config
from models.weights.tensor_files import (
    TensorFile,
    is_safetensors,
    locate,
    parse_json,
    read_file,
    read_header,
    read_json,
)
from models.weights.timm_names import check_timm_names
from models.weights.timm_vit import infer_vit_config
from strict_yaml import load_yaml_file

_TIMM = "timm:"


class SourceKind(StrEnum):
    """Whose names the tensors have."""

    earsight = "Earsight"
    cav_mae = "published CAV-MAE"
    vit = "ViT (ImageNet MAE, timm)"


@dataclass(frozen=True)
class SourceWeights:
    """Weights as they were found.

    Attributes:
        kind: Whose names they have.
        path: The file.
        state: Tensors by name, without the prefixes of wrapping modules; an encoder's of ours begin with ``encoder.``.
        config: The model they describe; None where shapes alone don't tell it.
        fbank: How spectrograms were made for it, where that is known.
        labels: Names of its classes, where that is known.
        num_heads: Attention heads, where something other than the config tells them.
        left: What else is in the file, by name, with why it is no weight.
        provenance: Path and SHA-256 of the file, and what it says of its own origin.
        published: Another family's published format that the file is in; ``state`` is in our names all the same.
        published_state: The tensors as that format names them.
    """

    kind: SourceKind
    path: Path
    state: dict[str, Tensor]
    config: ModelConfig | None = None
    fbank: FbankConfig | None = None
    labels: tuple[str, ...] | None = None
    num_heads: int | None = None
    left: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    published: PublishedFormat | None = None
    published_state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Whose weights these are, for messages."""
        return self.published.title if self.published else str(self.kind)

    @property
    def is_encoder_alone(self) -> bool:
        """Whether nothing but an encoder is there."""
        if self.kind is SourceKind.earsight:
            return all(name.startswith("encoder.") for name in self.state)
        return self.kind is SourceKind.cav_mae and not self.has_decoder

    @property
    def has_decoder(self) -> bool:
        """Whether they include a decoder."""
        return any(name.startswith(("decoder.", "decoder_")) for name in self.state)

    @property
    def num_classes(self) -> int | None:
        """Classes of the classification head; None where they have none of ours."""
        names = {SourceKind.earsight: "head.bias", SourceKind.cav_mae: "mlp_head.1.bias"}
        name = names.get(self.kind)
        return len(self.state[name]) if name in self.state else None

    def model_config(self, **known: Any) -> ModelConfig:
        """The model described, with what shapes don't tell given.

        Args:
            known: Fields of `ModelConfig`, such as ``num_heads``.

        Raises:
            WeightsError: Something has to be given that was not.
        """
        if self.config is not None:
            if known:
                given = ", ".join(sorted(known))
                raise WeightsError(f"{self.path} says itself what model it holds; leave out {given}")
            return self.config
        if self.published is not None:
            try:
                return self.published.infer_config(self.published_state, **known)
            except ValueError as error:
                raise WeightsError(f"{self.path}: {error}") from error
        heads = {} if self.num_heads is None else {"num_heads": self.num_heads}
        if self.kind is SourceKind.earsight:
            raise WeightsError(
                f"{self.path} holds weights and nothing about their model: give the run or the checkpoint's "
                f"folder, whose config.yaml says it"
            )
        infer = infer_config if self.kind is SourceKind.cav_mae else infer_vit_config
        try:
            return infer(self.state, **(heads | known))
        except WeightsError:
            raise
        except ValueError as error:
            raise WeightsError(f"{self.path}: {error}") from error


def read_weights(source: str | PathLike[str]) -> SourceWeights:
    """Finds and reads weights; nothing but tensors is ever unpickled.

    Args:
        source: A run, a checkpoint, an exported model, a file of weights, a DeepSpeed folder, a folder that
            timm reads, or ``timm:NAME:FILE`` for the weights of timm's model NAME (with or without a tag) in a local
            file.

    Raises:
        UnsafeFileError: The file holds more than tensors; nothing of it was run.
        WeightsError: There are no weights, or they are nobody's that we know.
    """
    text = str(source)
    if text.startswith(_TIMM):
        name, separator, file = text.removeprefix(_TIMM).partition(":")
        if not separator or not file:
            raise WeightsError(
                f"{text!r} must read timm:NAME:FILE, as in timm:vit_base_patch16_224:vit.safetensors"
            )
        return _timm_weights(name, {}, read_file(locate(Path(file))))
    path = locate(Path(source))
    file = read_file(path)
    config_json = path.with_name("config.json")
    if METADATA_KEY not in file.metadata and config_json.is_file():
        values = read_json(config_json)
        if "architecture" in values:
            name, arguments = values["architecture"], values.get("model_args") or {}
            if not isinstance(name, str) or not isinstance(arguments, Mapping):
                raise WeightsError(f"{config_json}: architecture must be a name, model_args a mapping")
            return _timm_weights(name, arguments, file)
    return _recognise(file)


def stated_description(source: str | PathLike[str]) -> Description | None:
    """What a run, a checkpoint or an exported file of Earsight's says of its model, without reading its tensors.

    Args:
        source: As of `read_weights`.

    Returns:
        None for weights of any other kind.

    Raises:
        WeightsError: There are no weights, or what they say of themselves can't be understood.
    """
    if str(source).startswith(_TIMM):
        return None
    path = locate(Path(source))
    if not is_safetensors(path):
        return None
    names, metadata = read_header(path)
    ours = any(name.startswith(("encoder.", "audio.patch_embed.")) for name in names)
    return _described(path, metadata) if ours else None


def _recognise(file: TensorFile) -> SourceWeights:
    state, provenance = file.tensors, _provenance(file)
    if "audio.patch_embed.weight" in state:  # a bare encoder's
        state = {f"encoder.{name}": value for name, value in state.items()}
    if any(name.startswith("encoder.") for name in state):
        description = _description(file)
        if description is None:
            return SourceWeights(SourceKind.earsight, file.path, state, left=file.left, provenance=provenance)
        return SourceWeights(
            SourceKind.earsight, file.path, state, description.model, description.fbank, description.labels,
            left=file.left, provenance=provenance | description.provenance,
        )  # fmt: skip
    for family in families():
        if family.published is not None and family.published.recognises(state):
            try:
                ours, left = family.published.to_ours(state)
            except ValueError as error:
                raise WeightsError(f"{file.path} ({family.published.title}): {error}") from error
            return SourceWeights(
                SourceKind.earsight, file.path, ours, left=file.left | left, provenance=provenance,
                published=family.published, published_state=state,
            )  # fmt: skip
    if "patch_embed_a.proj.weight" in state:
        return SourceWeights(SourceKind.cav_mae, file.path, state, left=file.left, provenance=provenance)
    if {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= set(state):
        return SourceWeights(SourceKind.vit, file.path, state, left=file.left, provenance=provenance)
    names = ", ".join(list(state)[:3])
    raise WeightsError(
        f"{file.path} holds weights of no kind that is known ({names}, ...): neither Earsight's names nor those of "
        f"a published model nor those of a ViT (patch_embed.proj, blocks.N)"
    )


def _description(file: TensorFile) -> Description | None:
    """What an Earsight file says of itself, or the config beside a checkpoint's weights."""
    if METADATA_KEY in file.metadata:
        values = parse_json(file.metadata[METADATA_KEY], file.path)
        if values.get("weights_sha256") != weights_hash(file.tensors):
            raise WeightsError(f"{file.path} is damaged: its weights are not those it was written with")
    return _described(file.path, file.metadata)


def _described(path: Path, metadata: Mapping[str, str]) -> Description | None:
    """The same, of weights in Earsight's names that need not be read for it."""
    if METADATA_KEY in metadata:
        return parse_description(parse_json(metadata[METADATA_KEY], path), str(path))
    # Beside a checkpoint's weights, or above what else a run holds, such as averaged weights.
    configs = [folder / "config.yaml" for folder in (path.parent, path.parent.parent)]
    config = next((config for config in configs if config.is_file()), None)
    if config is None:
        return None
    try:
        values = load_yaml_file(config)
    except (OSError, ValueError) as error:
        raise WeightsError(str(error)) from error
    if not isinstance(values, Mapping) or "model" not in values:
        raise WeightsError(f"{config} has no section `model`")
    fbank = values.get("fbank")
    return Description(
        parse_model(values["model"], str(config)),
        None if fbank is None else parse_fbank(fbank, str(config)),
        _classes(path),
        provenance=_run_provenance(path.parent, values),
    )


def _classes(path: Path) -> tuple[str, ...] | None:
    """The vocabulary that a fine-tuning run keeps; ``path`` is of weights in a checkpoint of it."""
    found = (kept_classes(folder) for folder in list(path.parents)[1:3])
    return next((tuple(classes) for classes in found if classes is not None), None)


def _run_provenance(checkpoint: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a checkpoint comes from: its run, step, data and versions."""
    found: dict[str, Any] = {"run": str(config.get("output_dir")), "seed": config.get("seed")}
    if isinstance(config.get("data"), Mapping):
        found["data"] = config["data"].get("train")
    found["init"] = config.get("init")
    found = {key: without_secrets(value) for key, value in found.items()}
    if (checkpoint / "state.json").is_file():
        state = read_json(checkpoint / "state.json")
        found |= {key: state[key] for key in ("step", "world_size", "torch", "deepspeed") if key in state}
    return found


def without_secrets(value: Any) -> Any:
    """A value of a config without what may be secret in it: users, queries and fragments of URLs, and commands."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(item) for item in value)
    if not isinstance(value, str):
        return value
    if value.lstrip().lower().startswith("pipe:"):
        return "pipe:…"
    return re.sub(r"(\w://)(?:[^/?#\s]*@)?([^?#\s]*)[?#]?\S*", r"\1\2", value)


def _provenance(source: TensorFile) -> dict[str, Any]:
    with source.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": str(source.path.resolve()), "file_sha256": digest, "precision": source.precision}


def _timm_weights(name: str, model_args: Mapping[str, Any], file: TensorFile) -> SourceWeights:
    heads = check_timm_names(name, model_args, file)
    provenance = _provenance(file) | {"timm": name}
    return SourceWeights(
        SourceKind.vit, file.path, file.tensors, num_heads=heads, left=file.left, provenance=provenance
    )
