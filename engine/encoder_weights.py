"""Taking over the encoders of a pretraining run, strictly and with a report of every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engine.checkpoint import CheckpointError, load_weights
from engine.runlog import logger
from models import AudioVisualEncoder, ModelConfig, interpolate_positions

_PREFIX = "encoder."


@dataclass(frozen=True)
class EncoderReport:
    """What became of a checkpoint's weights.

    Attributes:
        source: Where they came from.
        loaded: Names, within the encoder, whose values are now those of the checkpoint.
        interpolated: What was done to positions of another grid, by name.
        left_out: Names of the checkpoint that are no part of the encoder.
    """

    source: Path
    loaded: tuple[str, ...]
    interpolated: Mapping[str, str]
    left_out: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a person."""
        parts = sorted({name.split(".")[0] for name in self.left_out})
        lines = [f"{self.source}: {len(self.loaded)} encoder weights loaded, none missing"]
        lines += [f"positions {name}: {what}" for name, what in self.interpolated.items()]
        if parts:
            lines.append(f"not used of it: {len(self.left_out)} weights of {', '.join(parts)}")
        return lines


def load_encoder_weights(path: Path, encoder: AudioVisualEncoder) -> EncoderReport:
    """Gives ``encoder`` the weights of a run or checkpoint, and logs what became of each.

    Positions of another grid are fitted (`fit_positions`), which is logged; nothing else may differ.

    Args:
        path: A run, a checkpoint, or a safetensors file with ``encoder.*`` in it.
        encoder: What to fill.

    Raises:
        CheckpointError: There is no such checkpoint, weights are missing or unknown, or shapes differ; they are
            named.
    """
    weights = load_weights(path)
    given = {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
    own = encoder.state_dict()
    interpolated: dict[str, str] = {}
    for name in ("audio", "visual"):
        key = f"{name}.pos_embed"
        if key in given and key in own and given[key].shape[0] != own[key].shape[0]:
            given[key], interpolated[key] = fit_positions(given[key], encoder.config, name)
    missing = sorted(set(own) - set(given))
    unexpected = sorted(set(given) - set(own))
    misfits = [
        f"{name}: {tuple(given[name].shape)} there, {tuple(value.shape)} here"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if missing or unexpected or misfits:
        raise CheckpointError(_misfit(path, missing, unexpected, misfits))
    encoder.load_state_dict(given)
    left_out = tuple(name for name in weights if not name.startswith(_PREFIX))
    report = EncoderReport(path, tuple(own), interpolated, left_out)
    for line in report.lines():
        logger.info("%s", line)
    return report


def fit_positions(table: Tensor, config: ModelConfig, modality: str) -> tuple[Tensor, str]:
    """Positions of another clip length or image size for those of ``config``.

    Shorter sound keeps the positions from the start on, so that a patch keeps its place in time; longer sound
    and images of another size are interpolated.

    Args:
        table: (L, D) of the other model.
        config: This one's.
        modality: ``audio`` or ``visual``.

    Returns:
        The new table, and what was done in words.

    Raises:
        CheckpointError: The table's length makes no grid.
    """
    rows, columns = config.audio_grid if modality == "audio" else config.visual_grid
    length = len(table)
    old_rows = rows if modality == "audio" else round(length**0.5)
    if length % old_rows or (modality == "visual" and old_rows**2 != length):
        raise CheckpointError(f"{modality}.pos_embed has {length} places, which make no grid for {rows} rows")
    old = (old_rows, length // old_rows)
    words = f"{old[0]} × {old[1]} → {rows} × {columns}"
    if modality == "audio" and columns < old[1]:
        return table.reshape(*old, -1)[:, :columns].flatten(0, 1), f"cut, {words}"
    return interpolate_positions(table, old, (rows, columns)), f"interpolated, {words}"


def _misfit(path: Path, missing: list[str], unexpected: list[str], misfits: list[str]) -> str:
    parts = [f"{path}: its encoder does not fit this model"]
    for what, names in (("missing", missing), ("unknown here", unexpected), ("other shapes", misfits)):
        if names:
            shown = "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else "")
            parts.append(f"{what}: {shown}")
    return ". ".join(parts) + ". Set model.* as in the config.yaml beside the checkpoint"
