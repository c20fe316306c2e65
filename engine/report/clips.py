"""Clips on the page: what retrieval finds and misses, with frames and sounds, from the shards that the config names."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.config import ClipNeeds, DataConfig
from datasets.loading.loader import NUM_SAMPLES, evaluation_loader, open_store
from datasets.loading.reader import FrameChoice, middle_frame
from datasets.shards.names import is_url, public
from datasets.shards.table import ClipTable
from engine.embed.embedder import EarsightEmbedder
from engine.report.media import Media
from engine.run_folder import RunFolder
from models import load_pretrained

#: Queries of each kind, clips found for each, and pixels of a frame on the page.
_QUERIES, _FOUND, _SIDE = 4, 3, 160
_BATCH = 16


@dataclass(frozen=True)
class ClipView:
    """A clip on the page.

    Attributes:
        id: Its id.
        picture: Name of its frame in the page's media, if it has one and fits.
        sound: The same of its sound.
        text: What is said of it.
        good: Whether it is the right one.
    """

    id: str
    picture: str | None
    sound: str | None
    text: str = ""
    good: bool = False


@dataclass(frozen=True)
class Query:
    """A sound that was asked for.

    Attributes:
        clip: Its clip.
        rank: Of its own picture, from 1.
        found: The pictures found, the best first.
    """

    clip: ClipView
    rank: int
    found: list[ClipView]


@dataclass(frozen=True)
class Retrieval:
    """Which pictures the encoders find for sounds.

    Attributes:
        clips: Among how many clips.
        of: The set.
        hits: Queries whose own picture came first.
        misses: The others, the worst first.
    """

    clips: int
    of: str
    hits: list[Query] = field(default_factory=list)
    misses: list[Query] = field(default_factory=list)


def local_set(location: object) -> str:
    """The folder of a set on this machine.

    Raises:
        ValueError: None is named, or it would have to be fetched.
    """
    if not isinstance(location, str) or not location:
        raise ValueError("the config names no held-out set")
    if is_url(location):
        raise ValueError(f"the clips of {public(location)} are not fetched for a report")
    return location


def read_clips(
    location: str,
    rows: np.ndarray,
    frames: FrameChoice | None = middle_frame,
    image_size: int = 224,
    num_samples: int = NUM_SAMPLES,
) -> list[AVBatch]:
    """Some clips of a set in batches, unreadable ones left out.

    Raises:
        ShardError: The set is missing or damaged.
    """
    config = DataConfig(location, num_workers=0)
    needs = ClipNeeds(held_out_frames=frames, image_size=image_size, num_samples=num_samples)
    loader = evaluation_loader(config, location, needs, batch_size=_BATCH, chosen=rows)
    return [batch for batch in loader if len(batch)]


def open_table(location: str) -> ClipTable:
    """The table of a set on this machine.

    Raises:
        ShardError: It is missing or damaged.
    """
    return open_store(DataConfig(location), location).open_index()[1]


@torch.no_grad()
def retrieval(run: RunFolder, media: Media, most: int) -> Retrieval:
    """Embeds at most ``most`` clips of the run's held-out set and looks which pictures their sounds find.

    Raises:
        ValueError: There are no weights, no encoder of both modalities, or no such clips (any more).
        OSError: Something can't be read.
    """
    location = local_set(run.value("evaluation.shards") or run.value("data.val"))
    total = len(open_table(location))
    embedder = EarsightEmbedder(load_pretrained(run.path))
    rows = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
    batches = read_clips(location, rows, embedder.choose_frames, embedder.image_size, embedder.num_samples)
    if not batches:
        raise ValueError(f"no clip of {location} can be read")
    vectors = [embedder(batch) for batch in batches]
    audio, visual = (
        F.normalize(torch.cat([v[name] for v in vectors]), dim=1) for name in ("audio", "visual")
    )
    similarity = audio @ visual.T
    ranks = 1 + (similarity > similarity.diagonal()[:, None]).sum(1)
    order = ranks.argsort(descending=True, stable=True)
    wrong, right = (order[ranks[order] > 1].tolist(), (ranks == 1).nonzero().flatten().tolist())
    views = _Views(batches, media)

    def query(row: int) -> Query:
        best = similarity[row].topk(min(_FOUND, len(similarity))).indices.tolist()
        found = [views.at(i, text=f"{similarity[row, i]:.2f}", good=i == row) for i in best]
        return Query(views.at(row), int(ranks[row]), found)

    return Retrieval(
        len(similarity), location, [query(i) for i in right[:_QUERIES]], [query(i) for i in wrong[:_QUERIES]]
    )


class _Views:
    """Clips of batches as they stand on the page, each of them in its media once."""

    def __init__(self, batches: list[AVBatch], media: Media) -> None:
        self._places = [(batch, i) for batch in batches for i in range(len(batch))]
        self._media = media
        self._known: dict[int, ClipView] = {}

    def at(self, place: int, text: str = "", good: bool = False) -> ClipView:
        if place not in self._known:
            self._known[place] = view(*self._places[place], self._media)
        known = self._known[place]
        return ClipView(known.id, known.picture, known.sound, text, good)


def view(batch: AVBatch, place: int, media: Media, text: str = "") -> ClipView:
    """A clip of a batch, its frame and sound put into the page."""
    picture = sound = None
    if batch.frames is not None:
        picture = media.picture(_small(batch.frames[place]), _SIDE)
    if batch.waveform is not None and batch.num_samples is not None:
        sound = media.sound(batch.waveform[place, : int(batch.num_samples[place])])
    return ClipView(batch.ids[place], picture, sound, text)


def _small(frames: Tensor) -> Tensor:
    """The middle one of (N, 3, H, W) frames."""
    return frames[len(frames) // 2]
