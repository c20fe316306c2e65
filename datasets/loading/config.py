"""Where clips come from, and what is wanted of each."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from datasets.loading.frames import FrameChoice, middle_frame, random_frame
from datasets.shards.names import check_location, is_url, public

NUM_SAMPLES = (1024 - 1) * 160 + 400
"""Waveform samples that give 1024 log-mel frames (25 ms windows every 10 ms at 16 kHz), about 10 s."""


@dataclass(frozen=True)
class WeightedSet:
    """One of several training sets.

    Attributes:
        path: Its folder or URL.
        weight: Its clips are this share of those drawn, relative to the other sets' weights; 0 draws none.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(
                f"data.train: the weight of {public(self.path)} is {self.weight}; it must be 0 or more"
            )


@dataclass(frozen=True)
class DataConfig:
    """Where the clips come from and how they are read.

    Attributes:
        train: Folder or URL of the training set's shards; or several, as a list of ``{path, weight}``.
        val: The same for the held-out set; None for none.
        num_workers: Reader processes of each rank; 0 reads in the training process.
        prefetch_factor: Batches that each worker reads ahead.
        distinct_videos: No two clips of one video in a global batch, where ids tell (``VIDEO_SEGMENT``).
        shuffle_window: Shards among which clips are shuffled at a time.
        cache_dir: Folder for shards fetched from URLs; None where all are local.
        cache_gb: Upper bound of that folder in 10^9 bytes.
        max_bad_fraction: Share of clips that may turn out unreadable before the run stops.
        keep_truncated: Use what can be decoded of stored sounds and videos that are damaged or shorter than their
            headers say; otherwise they count as unreadable.
        stall_seconds: The run fails when its loader delivers no batch for this long.
    """

    train: str | list[WeightedSet]
    val: str | None = None
    num_workers: int = 4
    prefetch_factor: int = 4
    shuffle_window: int = 16
    distinct_videos: bool = False
    cache_dir: str | None = None
    cache_gb: float = 50.0
    max_bad_fraction: float = 0.01
    keep_truncated: bool = False
    stall_seconds: float = 300.0

    def __post_init__(self) -> None:
        _check_train(self.train)
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers must be 0 or more, not {self.num_workers}")
        for name in ("prefetch_factor", "shuffle_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, not {getattr(self, name)}")
        if not self.cache_gb > 0:
            raise ValueError(f"data.cache_gb must be above 0, not {self.cache_gb}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must be within 0 and 1, not {self.max_bad_fraction}")
        if not self.stall_seconds > 0:
            raise ValueError(f"data.stall_seconds must be above 0, not {self.stall_seconds}")
        for location in filter(None, [*(part.path for part in self.train_sets), self.val]):
            check_location(location)
            if is_url(location) and self.cache_dir is None:
                raise ValueError(
                    f"data.cache_dir must name a folder to keep the shards of {public(location)} in"
                )

    @property
    def train_sets(self) -> tuple[WeightedSet, ...]:
        """The training sets; one of weight 1 where ``train`` is a single path."""
        return (WeightedSet(self.train),) if isinstance(self.train, str) else tuple(self.train)


def _check_train(train: str | list[WeightedSet]) -> None:
    sets = [WeightedSet(train)] if isinstance(train, str) else train
    if not sets or not all(part.path for part in sets):
        raise ValueError("data.train must name the folder or URL of the training set")
    if not sum(part.weight for part in sets) > 0:
        raise ValueError("data.train: the weights of the sets sum to 0; give one of them a weight above 0")
    seen: dict[str, str] = {}
    for part in sets:
        place = part.path.rstrip("/") if is_url(part.path) else os.path.realpath(part.path)
        if place in seen:
            raise ValueError(
                f"data.train names one set twice, as {public(seen[place])} and {public(part.path)}; name it once, with "
                "its weight"
            )
        seen[place] = part.path


@dataclass(frozen=True)
class ClipNeeds:
    """What is wanted of each clip.

    Attributes:
        audio: Read the sound.
        train_frames: Which frames to read in training; None for none.
        held_out_frames: Which frames to read of held-out clips; None for none.
        image_size: Side of the frames in pixels.
        num_samples: S, length to which waveforms are cut or padded.
        text: Read the text of those clips that have any.
        partial: Also read clips that lack some of what is asked for; without it these are bad clips.
    """

    audio: bool = True
    train_frames: FrameChoice | None = random_frame
    held_out_frames: FrameChoice | None = middle_frame
    image_size: int = 224
    num_samples: int = NUM_SAMPLES
    text: bool = False
    partial: bool = False
