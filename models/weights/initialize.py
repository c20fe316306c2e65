"""Puts weights from any source into a model, with an account of every tensor on both sides.

Nothing is left out silently: each of the model's tensors is loaded, converted or initialised anew, each of the
file's is used or ignored, and the report says why. What can't be explained is an error, unless it is allowed
by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.encoders import Encoder
from models.layers.position import sincos_2d
from models.registry import VitRules, families, family_of
from models.weights import timm_vit
from models.weights.errors import WeightsError
from models.weights.published import NEVER_USED, PUBLISHED_EPS, from_published, published_name
from models.weights.sources import SourceKind, SourceWeights

_POSITIONS = re.compile(r"encoder\.(audio|visual)\.pos_embed|decoder\.pos_embed_(audio|visual)")
#: Settings that change no tensor of an encoder, so that they may differ from those that weights were made with.
_FREE = {
    "mask", "norm_pix_loss", "activation_checkpointing", "layer_norm_eps", "decoder_embed_dim", "decoder_depth",
    "decoder_num_heads",
}  # fmt: skip
_NO_HEAD = "the model has no classification head"
_NO_DECODER = "the model has no decoder"
#: What contrastive families project to and predict with in pretraining, and how dense grounding scales similarities.
_HEADS = ("heads.", "scale.")


@runtime_checkable
class GridConfig(Protocol):
    """A model whose tokens of either modality lie in rows and columns, with a position each."""

    @property
    def audio_grid(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def visual_grid(self) -> tuple[int, int]: ...  # noqa: D102


class Outcome(StrEnum):
    """What became of a tensor."""

    loaded = "loaded"
    converted = "converted"
    anew = "initialised anew"
    ignored = "ignored"


@dataclass(frozen=True)
class Entry:
    """One tensor's account.

    Attributes:
        outcome: What became of it.
        name: In the model; empty for one that is ignored.
        source: In the file; empty for one that is initialised anew.
        why: How it was converted, or why it is anew or ignored.
    """

    outcome: Outcome
    name: str = ""
    source: str = ""
    why: str = ""


@dataclass(frozen=True)
class InitReport:
    """What became of every tensor.

    Attributes:
        source: The file and whose names it has.
        entries: One for each of the model's tensors and each of the file's that is not used.
        notes: What else a user should know.
    """

    source: str
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def names(self, outcome: Outcome) -> list[str]:
        """The model's names (the file's where ignored) with this outcome."""
        return [entry.name or entry.source for entry in self.entries if entry.outcome is outcome]

    def __str__(self) -> str:
        """A table, blocks and pairs of weight and bias together in a row."""
        counts: dict[tuple[str, ...], int] = {}
        for entry in self.entries:
            row = (str(entry.outcome), _together(entry.name), _together(entry.source), entry.why)
            counts[row] = counts.get(row, 0) + 1
        order = [str(outcome) for outcome in Outcome]
        rows = [("", "tensors", "in the model", "in the file", "how or why")]
        for row in sorted(counts, key=lambda row: (order.index(row[0]), row[1:])):
            outcome, name, source, why = row
            rows.append((outcome, str(counts[row]), name or "-", source or "-", why))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"weights from {self.source}"]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True))
            lines.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _listed(wrong: list[str], most: int = 20) -> list[str]:
    """All of it, or where that is long a line for what is the same about a block."""
    if len(wrong) <= most:
        return wrong
    counts = Counter(re.sub(r"(blocks(?:_[auv])?\.\d+)\.[\w.]+", r"\1.*", line) for line in wrong)
    return [line if count == 1 else f"{line} ({count} tensors)" for line, count in counts.items()]


def _together(name: str) -> str:
    name = re.sub(r"(.*blocks(?:_[auv])?)\.\d+\..+", r"\1.*", name)
    return re.sub(r"\.(weight|bias)$", "", name)


@dataclass
class _Account:
    """The state being made, what has been accounted for, and what could not be."""

    state: dict[str, Tensor] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


@torch.no_grad()
def initialize(model: nn.Module, source: SourceWeights, allow: Sequence[str] = ()) -> InitReport:
    """Loads what fits into the model; the rest of the model keeps the values it was built with.

    Args:
        model: A family's pretraining model, encoder or `AudioVisualClassifier` (or a module whose state has their
            names and which has their ``config``).
        source: From `models.weights.sources.read_weights`.
        allow: Patterns (``head.*``) of the model's tensors that may stay as drawn though the file lacks them
            or has them in another shape or not finite, and of the file's that may be left out.

    Raises:
        WeightsError: Tensors are missing, left over, misshapen or not finite; all are named.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    prefix = "encoder." if isinstance(model, Encoder) else ""
    own = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    _check_sizes(source, config)
    account = _Account()
    for name, value in own.items():
        _fill(name, value, source, config, allow, account)
    for name, why in source.left.items():
        account.entries.append(Entry(Outcome.ignored, source=name, why=why))
    for name in source.state:
        if name not in account.used:
            _leave(name, source, config, own, allow, account)
    if account.wrong:
        listed = "\n  ".join(_listed(account.wrong))
        raise WeightsError(
            f"{source.path} ({source.title}) does not fit the model:\n  {listed}\n"
            f"allow what may differ by name (init_allow in a config, --allow of a program), such as 'head.*'"
            f"{_own_settings(source, config)}"
        )
    model.load_state_dict(
        {name.removeprefix(prefix): value for name, value in account.state.items()}, strict=False
    )
    return InitReport(f"{source.path} ({source.title})", tuple(account.entries), _notes(source, config))


def _fill(
    name: str,
    own: Tensor,
    source: SourceWeights,
    config: ModelConfig,
    allow: Sequence[str],
    account: _Account,
) -> None:
    """Accounts for one of the model's tensors."""
    pulled = _pull(name, source, config)
    if pulled is None:
        why = _why_anew(name, source, config) or ("allowed" if _allowed(name, allow) else None)
        if why is None:
            there = published_name(name) if source.kind is SourceKind.cav_mae else ""
            shown = f"{there} ({name})" if there else name
            account.wrong.append(f"{shown} is missing in the file")
        else:
            account.entries.append(Entry(Outcome.anew, name, why=why))
        return
    origin, value, how = pulled
    account.used.add(origin)
    if isinstance(config, GridConfig) and _POSITIONS.fullmatch(name):
        value, how = _fit_positions(name, value, own, config, fixed=source.kind is not SourceKind.vit)
    if value.shape == own.shape and not value.isfinite().all():
        if _allowed(name, allow):
            account.entries.append(
                Entry(Outcome.anew, name, origin, "allowed: not all of it is finite there")
            )
        else:
            account.wrong.append(f"{origin} in the file has values that are not finite (NaN or infinite)")
    elif value.shape == own.shape:
        account.state[name] = value
        account.entries.append(Entry(Outcome.converted if how else Outcome.loaded, name, origin, how or ""))
        if scale := timm_vit.layer_scale(origin):
            account.used.add(scale)
    elif name.endswith("pos_embed") and not isinstance(config, GridConfig):
        account.entries.append(Entry(Outcome.anew, name, origin, "fixed positions of its own grid"))
    elif _allowed(name, allow):
        why = f"allowed: it has shape {tuple(value.shape)} there"
        account.entries.append(Entry(Outcome.anew, name, origin, why))
    else:
        there = tuple(value.shape)
        account.wrong.append(f"{name} has shape {tuple(own.shape)}, {origin} in the file {there}")


def _pull(name: str, source: SourceWeights, config: ModelConfig) -> timm_vit.Pulled | None:
    """The file's tensor for one of our names, in our layout; positions as a (rows, columns, D) grid."""
    if source.kind is SourceKind.vit:
        return _vit_rules(config).pull(name, source.state, config)
    origin = name if source.kind is SourceKind.earsight else published_name(name)
    value = source.state.get(origin)
    if value is None:
        return None
    match = _POSITIONS.fullmatch(name)
    if match and isinstance(config, GridConfig):
        rows, columns = _source_grid(match.group(1) or match.group(2), value, source, config)
        if value.shape[-2:-1].numel() != rows * columns:
            raise WeightsError(
                f"{source.path}: {origin} has shape {tuple(value.shape)}, its model {rows}×{columns} positions"
            )
        return origin, value.reshape(rows, columns, -1), None
    if source.kind is SourceKind.earsight:
        return origin, value, None
    how = "laid out as rows of patches" if name.endswith("patch_embed.weight") else None
    return origin, from_published(name, value), how


def _vit_rules(config: ModelConfig) -> VitRules:
    own = family_of(config.name).vit
    return own or VitRules(timm_vit.pull, timm_vit.why_anew, timm_vit.why_ignored)


def _source_grid(modality: str, table: Tensor, source: SourceWeights, config: GridConfig) -> tuple[int, int]:
    if source.config is not None:
        theirs = cast(GridConfig, source.config)
        return theirs.audio_grid if modality == "audio" else theirs.visual_grid
    length = table.shape[-2]
    rows = config.audio_grid[0] if modality == "audio" else round(length**0.5)
    if length % rows or (modality == "visual" and length != rows * rows):
        raise WeightsError(f"{source.path}: {length} {modality} positions make no grid of {rows} rows")
    return rows, length // rows


def _fit_positions(
    name: str, grid: Tensor, own: Tensor, config: GridConfig, *, fixed: bool
) -> tuple[Tensor, str | None]:
    """A (rows, columns, D) grid of positions on the model's own grid, flattened.

    In time, fixed sin-cos positions simply go on: the first seconds keep their places. Everything else is
    interpolated, as usual for pictures.
    """
    audio = "audio" in name
    target = config.audio_grid if audio else config.visual_grid
    source = (grid.shape[0], grid.shape[1])
    if source == target or grid.shape[2] != own.shape[1]:
        return grid.flatten(0, 1), None
    change = f"{source[0]}×{source[1]} to {target[0]}×{target[1]}"
    table = sincos_2d(grid.shape[2], source)
    if fixed and audio and torch.allclose(grid.flatten(0, 1), table, atol=1e-5):
        return sincos_2d(grid.shape[2], target), f"fixed sin-cos positions, {change}"
    resized = F.interpolate(
        grid.permute(2, 0, 1)[None], target, mode="bicubic", align_corners=False, antialias=True
    )
    return resized[0].permute(1, 2, 0).flatten(0, 1), f"interpolated from {change}"


def _why_anew(name: str, source: SourceWeights, config: ModelConfig) -> str | None:
    """Why the file can't have one of the model's tensors; None if it should have it."""
    if name.startswith(("norm.", "head.")) and source.num_classes is None:
        return "the head of a new task"
    if name.startswith("decoder.") and not source.has_decoder:
        return "the file has no decoder"
    if name.startswith(_HEADS) and not any(key.startswith(_HEADS) for key in source.state):
        return "the file has no heads of pretraining"
    extension = family_of(config.name).extends
    if extension and extension.added.fullmatch(name) and _family(source) in (extension.family, None):
        return "the file's kind of model has none"
    return _vit_rules(config).why_anew(name) if source.kind is SourceKind.vit else None


def _leave(
    name: str,
    source: SourceWeights,
    config: ModelConfig,
    own: Mapping[str, Tensor],
    allow: Sequence[str],
    account: _Account,
) -> None:
    """Accounts for one of the file's tensors that the model did not take."""
    why = _why_ignored(name, source, config, own) or ("allowed" if _allowed(name, allow) else None)
    if why is None:
        account.wrong.append(f"{name} in the file has no place in the model")
    else:
        account.entries.append(Entry(Outcome.ignored, source=name, why=why))


def _why_ignored(
    name: str, source: SourceWeights, config: ModelConfig, own: Mapping[str, Tensor]
) -> str | None:
    has_decoder = any(key.startswith("decoder.") for key in own)
    if source.kind is SourceKind.cav_mae and NEVER_USED.fullmatch(name):
        return "the published model has it and never uses it"
    if not has_decoder and (name.startswith(("decoder.", "decoder_")) or name == "mask_token"):
        return _NO_DECODER
    if name.startswith(_HEADS) and not any(key.startswith(_HEADS) for key in own):
        return "the model has no heads of pretraining"
    if source.kind is SourceKind.vit:
        return _vit_rules(config).why_ignored(name)
    if "head.weight" not in own and name.startswith(("mlp_head.", "norm.", "head.")):
        return _NO_HEAD
    return None


def _allowed(name: str, allow: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in allow)


def _family(source: SourceWeights) -> str | None:
    """The family whose names the weights have; None of a ViT, or where nothing tells it."""
    if source.config is not None:
        return family_of(source.config.name).name
    if source.published is not None:
        return next(family.name for family in families() if family.published is source.published)
    return "cav_mae" if source.kind is SourceKind.cav_mae else None


def _check_sizes(source: SourceWeights, config: ModelConfig) -> None:
    """Family and widths first: one clear error in place of a hundred misshapen tensors."""
    theirs = source.config
    if source.published is not None:
        with suppress(WeightsError):  # where shapes don't tell all of it, the tensors speak for themselves
            theirs = source.model_config()
    ours, found = family_of(config.name), _family(source)
    if found is not None and found != ours.name and not (ours.extends and ours.extends.family == found):
        raise WeightsError(
            f"{source.path} ({source.title}) holds a model of the family {found}, and {config.name} is one of "
            f"{ours.name}: give model.name={theirs.name if theirs else ' or '.join(_presets(found))}"
        )
    key = {
        SourceKind.earsight: "encoder.visual.patch_embed.bias",
        SourceKind.cav_mae: "patch_embed_v.proj.bias",
        SourceKind.vit: "patch_embed.proj.bias",
    }[source.kind]
    width = len(source.state.get(key, ()))
    if width != config.encoder_width and (key in source.state or source.kind is not SourceKind.earsight):
        raise WeightsError(
            f"{source.path} has width {width}, the model's embed_dim is {config.encoder_width}"
            f"{_own_settings(source, config)}"
        )
    heads = theirs.encoder_heads if theirs else source.num_heads
    if heads is not None and heads != config.encoder_heads:
        raise WeightsError(
            f"{source.path} has {heads} attention heads, the model's num_heads is {config.encoder_heads}; the same "
            f"weights with other heads are another function{_own_settings(source, config)}"
        )


def _presets(family: str) -> list[str]:
    return next(list(known.presets) for known in families() if known.name == family)


def _own_settings(source: SourceWeights, config: ModelConfig) -> str:
    """For the end of an error: what a config has to say for the model that the weights are of, where that is known."""
    theirs = source.config
    if theirs is None or type(theirs) is not type(config):
        return ""
    names = [f.name for f in fields(config) if f.name not in _FREE]
    keys = [key for key in names if getattr(theirs, key) != getattr(config, key)]
    if not keys:
        return ""
    there, here = (
        " ".join(f"model.{key}={_word(getattr(values, key))}" for key in keys) for values in (theirs, config)
    )
    return f"\nit was made with {there}, and here is {here}: give the former, as its config.yaml has it"


def _word(value: object) -> str:
    return "null" if value is None else str(value)


def _notes(source: SourceWeights, config: ModelConfig) -> tuple[str, ...]:
    notes = []
    eps = None if source.config is None else getattr(source.config, "layer_norm_eps", None)
    if source.kind is SourceKind.cav_mae:
        eps = PUBLISHED_EPS
    ours = getattr(config, "layer_norm_eps", eps)
    if eps is not None and eps != ours:
        notes.append(
            f"LayerNorm's epsilon was {eps:g} there and is {ours:g} here (layer_norm_eps): "
            f"outputs differ slightly until training has gone on"
        )
    precision = source.provenance.get("precision", "float32")
    if precision != "float32":
        notes.append(f"the file holds {precision} numbers: these weights were rounded when they were saved")
    if source.config is None and source.num_heads is None:
        heads = config.encoder_heads
        notes.append(f"the file does not say its heads; the model's num_heads {heads} is taken")
    return tuple(notes)
