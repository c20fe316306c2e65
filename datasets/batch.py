"""What travels from the reader to the model: one clip, a batch of clips, and what could not be read.

Shape legend, used throughout: ``B`` batch, ``S`` waveform samples, ``T F`` fbank frames and mel bins, ``N``
video frames, ``C H W`` picture, ``L`` tokens, ``K`` kept tokens, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        frame_index: N places of the frames among the stored ones, from 0; empty without frames.
        num_stored: Frames that are stored of the clip.
        frame_times: (N,) seconds after the clip's start at which the frames are shown, or None where not known.
        text: What is said, or None where there is no text or none is asked for.
    """

    id: str
    row: int
    seed: int
    waveform: Tensor | None
    frames: Tensor | None
    labels: tuple[int, ...] = ()
    failures: tuple[ReadFailure, ...] = ()
    frame_index: tuple[int, ...] = ()
    num_stored: int = 0
    frame_times: Tensor | None = None
    text: str | None = None


@dataclass(frozen=True)
class AVBatch:
    """A batch of clips as the front end takes it.

    A clip without sound or without frames, where these are asked for and may be missing, is 0 there: its
    ``num_samples`` or its ``num_stored`` is 0, and its waveform or frames are zeros that mean nothing.

    Attributes:
        ids: B clip ids.
        rows: (B,) int64 rows in the table.
        seeds: (B,) int64 seeds for masks and augmentation.
        waveform: (B, S) int16, zero-padded to S, or None.
        num_samples: (B,) int64 true lengths, at most S, or None.
        frames: (B, N, 3, H, W) uint8, or None.
        labels: (B, classes) float32 multi-hot, or None where the set has no labels.
        failures: Clips that could not be read while making this batch.
        frame_index: (B, N) int64 places of the frames among the ``num_stored`` ones of their clip, or None.
        num_stored: (B,) int64 frames stored of each clip, or None.
        frame_times: (B, N) float32 seconds after the clip's start at which the frames are shown, NaN where a
            clip's set does not know them; None where none of the clips' does.
        text: Of each clip what is said, or None; None where nobody reads text.
    """

    ids: list[str]
    rows: Tensor
    seeds: Tensor
    waveform: Tensor | None = None
    num_samples: Tensor | None = None
    frames: Tensor | None = None
    labels: Tensor | None = None
    failures: list[ReadFailure] = field(default_factory=list)
    frame_index: Tensor | None = None
    num_stored: Tensor | None = None
    frame_times: Tensor | None = None
    text: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> AVBatch:
        """The first ``count`` clips of the batch."""
        return self.part(slice(count))

    def part(self, chosen: slice) -> AVBatch:
        """Some of the clips."""
        text = None if self.text is None else self.text[chosen]
        return replace(self._map(lambda tensor: tensor[chosen]), ids=self.ids[chosen], text=text)

    def without(self, left_out: Mapping[int, ReadFailure]) -> AVBatch:
        """The batch without the clips at these places, which are among its failures instead."""
        if not left_out:
            return self
        kept = [place for place in range(len(self)) if place not in left_out]
        rows = torch.tensor(kept, dtype=torch.int64, device=self.rows.device)
        return replace(
            self._map(lambda tensor: tensor[rows]),
            ids=[self.ids[place] for place in kept],
            failures=[*self.failures, *left_out.values()],
            text=None if self.text is None else [self.text[place] for place in kept],
        )

    def to(self, device: torch.device | str, non_blocking: bool = True) -> AVBatch:
        """The same batch with its tensors on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> AVBatch:
        """The same batch in page-locked memory (called by ``DataLoader(pin_memory=True)``)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the tensors' memory until what ``stream`` was given so far is done; see ``Tensor.record_stream``."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def _map(self, function) -> AVBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{name: function(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        )


def collate(items: Sequence[Clip | ReadFailure], num_samples: int, num_classes: int) -> AVBatch:
    """Joins clips into a batch.

    Args:
        items: Clips, all with or all without sound, all with or all without frames of one shape; and, in an
            evaluation, failures of clips that are left out. If nothing but failures is left, so is a batch of
            length 0 with neither sound nor frames.
        num_samples: S, the length to which waveforms are zero-padded or cut.
        num_classes: Width of the multi-hot labels; 0 for a set without labels.

    Raises:
        ValueError: The clips have different numbers of frames.
    """
    clips = [item for item in items if isinstance(item, Clip)]
    failures = [item for item in items if isinstance(item, ReadFailure)]
    waveform, lengths = _pad([clip.waveform for clip in clips if clip.waveform is not None], num_samples)
    frames = _stack_frames(clips)
    placed = frames is not None and all(clip.frame_index for clip in clips)
    return AVBatch(
        ids=[clip.id for clip in clips],
        rows=torch.tensor([clip.row for clip in clips], dtype=torch.int64),
        seeds=torch.tensor([clip.seed for clip in clips], dtype=torch.int64),
        waveform=waveform,
        num_samples=lengths,
        frames=frames,
        labels=_multi_hot(clips, num_classes) if num_classes else None,
        failures=failures + [failure for clip in clips for failure in clip.failures],
        frame_index=torch.tensor([clip.frame_index for clip in clips]) if placed else None,
        num_stored=torch.tensor([clip.num_stored for clip in clips]) if placed else None,
        frame_times=_stack_times(clips),
        text=[clip.text for clip in clips],
    )


def _pad(waveforms: Sequence[Tensor], num_samples: int) -> tuple[Tensor | None, Tensor | None]:
    if not waveforms:
        return None, None
    padded = torch.zeros(len(waveforms), num_samples, dtype=torch.int16)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform[:num_samples]
    return padded, torch.tensor([min(len(waveform), num_samples) for waveform in waveforms])


def _stack_frames(clips: Sequence[Clip]) -> Tensor | None:
    frames = {clip.id: clip.frames for clip in clips if clip.frames is not None}
    stored = [clip.frames for clip in clips if clip.frames is not None]
    if len({tuple(tensor.shape) for tensor in stored}) > 1:
        counts = ", ".join(f"{name}: {len(tensor)}" for name, tensor in list(frames.items())[:8])
        raise ValueError(
            f"clips of one batch have different numbers of frames ({counts}); choose a fixed number"
        )
    return torch.stack(stored) if stored else None


def _stack_times(clips: Sequence[Clip]) -> Tensor | None:
    if all(clip.frame_times is None for clip in clips):
        return None
    unknown = [torch.full((len(clip.frame_index),), torch.nan) for clip in clips]
    return torch.stack(
        [
            nan if clip.frame_times is None else clip.frame_times
            for clip, nan in zip(clips, unknown, strict=True)
        ]
    )


def _multi_hot(clips: Sequence[Clip], num_classes: int) -> Tensor:
    labels = torch.zeros(len(clips), num_classes)
    for row, clip in zip(labels, clips, strict=True):
        row[list(clip.labels)] = 1.0
    return labels


class TooManyFailuresError(ValueError):
    """More clips can't be read than the budget allows."""


@dataclass
class FailureBudget:
    """Counts clips that could not be read, and stops a run in which they are too many.

    A rank counts its own batches; sum ``seen`` and ``failed`` over the ranks to judge all of them together.

    Attributes:
        max_fraction: Share of the clips seen that may fail.
        grace: Until this many clips are seen, as many may fail as are allowed in ``grace`` clips.
        seen: Clips asked for so far.
        failed: Clips that could not be read so far, each time they came up.
        named: The latest of them, one of each id, for the error.
    """

    max_fraction: float
    grace: int = 1000
    seen: int = 0
    failed: int = 0
    named: dict[str, ReadFailure] = field(default_factory=dict)

    def count(self, batch: AVBatch) -> list[ReadFailure]:
        """Counts a batch; returns those of its failures whose clip was not named yet, for the log."""
        self.seen += len(batch) + len(batch.failures)
        self.failed += len(batch.failures)
        new = {failure.id: failure for failure in batch.failures if failure.id not in self.named}
        self.named.update(new)
        return list(new.values())

    def check(self) -> None:
        """Raises ``TooManyFailuresError`` if more failed than ``max_fraction`` allows."""
        allowed = self.max_fraction * max(self.seen, self.grace)
        if self.failed > allowed:
            latest = "; ".join(f"{f.id} in {f.shard}: {f.reason}" for f in list(self.named.values())[-5:])
            raise TooManyFailuresError(
                f"{self.failed} of {self.seen} clips could not be read, more than max_bad_fraction "
                f"{self.max_fraction:g} allows. Check the shards with: python -m datasets.check FOLDER. "
                f"The latest: {latest}"
            )
