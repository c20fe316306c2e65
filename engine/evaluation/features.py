"""Frozen features of a set, and what they are worth: retrieval, nearest neighbours, linear probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.batch import AVBatch, ReadFailure
from engine.evaluation.unreadable import gather_failures
from engine.parallel.world import World
from models import Encoder

#: (B, T, F) normalised fbank and (B, N, 3, H, W) normalised frames of a batch.
Inputs = Callable[[AVBatch], tuple[Tensor | None, Tensor | None]]
#: (B, D) features of a batch by name.
Embed = Callable[[AVBatch], dict[str, Tensor]]


@dataclass(frozen=True)
class Features:
    """Features of a set, a row a clip in the order of the set.

    Attributes:
        ids: N clip ids.
        rows: (N,) rows in the set's table.
        labels: (N, C) 0 or 1, or None for a set without labels.
        streams: (N, D) float32 by name, such as those of `encoder_vectors`.
    """

    ids: list[str]
    rows: Tensor
    labels: Tensor | None
    streams: dict[str, Tensor]

    def to(self, device: torch.device) -> Features:
        """The same with its tensors on ``device``."""
        labels = None if self.labels is None else self.labels.to(device)
        streams = {name: value.to(device) for name, value in self.streams.items()}
        return Features(self.ids, self.rows.to(device), labels, streams)


def encoder_vectors(encoder: Encoder[Any], inputs: Inputs) -> Embed:
    """The encoder's vectors, nothing masked: ``audio`` and ``visual`` alone, ``audio_visual`` together.

    Args:
        encoder: In evaluation mode.
        inputs: From a batch with sound and one frame to what the encoder takes.
    """

    def embed(batch: AVBatch) -> dict[str, Tensor]:
        vectors = encoder.embed(*inputs(batch))
        found = {"audio": vectors.audio, "visual": vectors.visual, "audio_visual": vectors.joint}
        return {name: value for name, value in found.items() if value is not None}

    return embed


@torch.no_grad()
def embed_set(
    embed: Embed, loader: Iterable[AVBatch], world: World, max_bad_fraction: float, bf16: bool = False
) -> Features | None:
    """Embeds every clip of a loader once over all ranks; every rank calls it.

    Args:
        embed: What to keep of a batch.
        loader: This rank's batches.
        world: The processes.
        max_bad_fraction: Share of the clips that may be unreadable; they are left out, and named in the log.
        bf16: Whether to compute in bfloat16.

    Returns:
        The whole on rank 0, None on the others: of a large set it is gigabytes.

    Raises:
        TooManyFailuresError: More clips can't be read.
        ValueError: No clip at all could be read.
    """
    parts: list[dict[str, np.ndarray]] = []
    ids: list[str] = []
    failures: list[ReadFailure] = []
    with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
        for batch in loader:
            failures += batch.failures
            if not len(batch):
                continue
            batch = batch.to(world.device)
            columns = embed(batch) | {"rows": batch.rows}
            if batch.labels is not None:
                columns["labels"] = batch.labels
            parts.append({name: value.cpu().numpy() for name, value in columns.items()})
            ids += batch.ids
    own = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    gather_failures(failures, len(ids), world, max_bad_fraction)
    gathered = world.gather_to_main((ids, own))
    if gathered is None:
        return None
    filled = [part for part in gathered if part[1]]
    joined = {name: np.concatenate([part[1][name] for part in filled]) for name in filled[0][1]}
    order = np.argsort(joined["rows"], kind="stable")
    tensors = {name: torch.from_numpy(value[order]) for name, value in joined.items()}
    names = [name for part in filled for name in part[0]]
    rows, labels = tensors.pop("rows"), tensors.pop("labels", None)
    return Features([names[i] for i in order.tolist()], rows, labels, tensors)
