"""What travels from the reader to the model: one clip, a batch of clips, and what could not be read.

Shape legend, used throughout: ``B`` batch, ``S`` waveform samples, ``T F`` fbank frames and mel bins, ``N`` video
frames, ``C H W`` picture, ``L`` tokens, ``K`` kept tokens, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Ticket(NamedTuple):
    """One place in the plan: which clip to read, and the number all its randomness derives from.

    Attributes:
        row: The clip's row in the table.
        seed: ``0 <= seed < 2**63``; a pure function of the plan's seed and the place in the sample sequence.
    """

    row: int
    seed: int


class ReadFailure(NamedTuple):
    """A clip that could not be read or decoded, named for the log.

    Attributes:
        id: The clip's id.
        shard: The shard it lies in.
        reason: What was wrong with it.
    """

    id: str
    shard: str
    reason: str


@dataclass(frozen=True)
class Clip:
    """One decoded clip.

    Attributes:
        id: The clip's id.
        row: Its row in the table (of the clip actually read, where it stands in for a bad one).
        seed: The ticket's seed.
        waveform: (S,) int16 mono sound of its true length, or None where sound is not asked for.
        frames: (N, 3, H, W) uint8 RGB, or None where frames are not asked for.
        labels: Label ids, ascending.
        failures: Clips whose place this one took.
    """

    id: str
    row: int
    seed: int
    waveform: Tensor | None
    frames: Tensor | None
    labels: tuple[int, ...] = ()
    failures: tuple[ReadFailure, ...] = ()


@dataclass(frozen=True)
class AVBatch:
    """A batch of clips as the front end takes it.

    Attributes:
        ids: B clip ids.
        rows: (B,) int64 rows in the table.
        seeds: (B,) int64 seeds for masks and augmentation.
        waveform: (B, S) int16, zero-padded to S, or None.
        num_samples: (B,) int64 true lengths, at most S, or None.
        frames: (B, N, 3, H, W) uint8, or None.
        labels: (B, classes) float32 multi-hot, or None where the set has no labels.
        failures: Clips that could not be read while making this batch.
    """

    ids: list[str]
    rows: Tensor
    seeds: Tensor
    waveform: Tensor | None = None
    num_samples: Tensor | None = None
    frames: Tensor | None = None
    labels: Tensor | None = None
    failures: list[ReadFailure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> AVBatch:
        """The same batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> AVBatch:
        """The same batch in page-locked memory (called by ``DataLoader(pin_memory=True)``)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function) -> AVBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(value) for name, value in tensors.items() if isinstance(value, Tensor)})


def collate(clips: Sequence[Clip], num_samples: int, num_classes: int) -> AVBatch:
    """Joins clips into a batch.

    Args:
        clips: B clips, all with or all without sound, all with or all without frames of one shape.
        num_samples: S, the length to which waveforms are zero-padded or cut.
        num_classes: Width of the multi-hot labels; 0 for a set without labels.
    """
    waveform = lengths = frames = labels = None
    if clips[0].waveform is not None:
        waveform = torch.zeros(len(clips), num_samples, dtype=torch.int16)
        lengths = torch.zeros(len(clips), dtype=torch.int64)
        for i, clip in enumerate(clips):
            assert clip.waveform is not None
            n = min(len(clip.waveform), num_samples)
            waveform[i, :n] = clip.waveform[:n]
            lengths[i] = n
    if clips[0].frames is not None:
        frames = torch.stack([clip.frames for clip in clips if clip.frames is not None])
    if num_classes:
        labels = torch.zeros(len(clips), num_classes)
        for i, clip in enumerate(clips):
            labels[i, list(clip.labels)] = 1.0
    return AVBatch(
        ids=[clip.id for clip in clips],
        rows=torch.tensor([clip.row for clip in clips]),
        seeds=torch.tensor([clip.seed for clip in clips]),
        waveform=waveform,
        num_samples=lengths,
        frames=frames,
        labels=labels,
        failures=[failure for clip in clips for failure in clip.failures],
    )
