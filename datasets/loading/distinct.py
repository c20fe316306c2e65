"""An order in which no global batch holds two clips of one video.

Two seconds of one video are alike, so as each other's negatives they teach a contrast the wrong thing. Which clips are
of one video is told by their ids: ``VIDEO_SEGMENT``, the segment being a number, as `datasets.prepare` and the
published sets name them. A clip whose id does not end so is a video of its own.

Decisions:
    * Another order is changed as little as can be: a clip whose video is in its batch already changes places with one
      of the nearest batch where both may be. So reading stays local, each clip comes as often as it did, and the
      epoch stays a pure function of its number.
    * A batch may straddle two epochs. The end of an epoch is settled first, from that epoch's order alone; then the
      beginning of the next, which must fit it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.loading.plan import EpochOrder, mix
from datasets.shards.table import ClipTable

_ATTEMPTS = 30  # for each clip that has to move; one is nearly always enough
_SEGMENT = re.compile(r"(.+)_\d+(?:\.\d+)?")


def video_numbers(tables: Sequence[ClipTable]) -> NDArray[np.int64]:
    """(clips of all tables,) the same number for clips of one video; a video may be in several sets."""
    numbers: dict[str, int] = {}
    return np.array(
        [numbers.setdefault(_video(name), len(numbers)) for table in tables for name in table.ids()], np.int64
    )


def _video(identifier: str) -> str:
    match = _SEGMENT.fullmatch(identifier)
    return match[1] if match else identifier


def _nearest(own: int, count: int) -> Iterator[int]:
    """The other ones of ``count`` batches, the nearest first."""
    for distance in range(1, count):
        yield from (batch for batch in (own + distance, own - distance) if 0 <= batch < count)


@dataclass(frozen=True, eq=False)
class DistinctVideos:
    """``order`` with clips moved between batches so that each batch holds as many videos as clips.

    Attributes:
        order: The order to be changed.
        videos: (rows,) which video each row is of.
        global_batch_size: Clips to a batch.
    """

    order: EpochOrder
    videos: NDArray[np.int64]
    global_batch_size: int

    def __post_init__(self) -> None:
        videos = len(np.unique(self.videos))
        if videos < self.global_batch_size:
            raise ValueError(self._impossible(f"it has {videos} videos"))

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The row at each place of ``epoch``.

        Raises:
            ValueError: The clips can't be placed so.
        """
        size = self.global_batch_size
        carried = epoch * len(self) % size  # places of the first batch that the epoch before has filled
        before = self._ended(epoch - 1)[-carried:] if carried else np.empty(0, np.int64)
        rows = np.concatenate([before, self._ended(epoch)])
        whole = len(rows) // size * size
        # What the epoch before has filled and the last batch, as far as it goes, are settled.
        movable = np.zeros(len(rows), bool)
        movable[carried:whole] = True
        self._separate(rows, movable)
        return rows[carried:]

    def _ended(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch with the beginning of a batch at its end settled."""
        rows = self.order.rows(epoch).copy()
        begun = (epoch + 1) * len(self) % self.global_batch_size
        if begun > 1:
            seen: set[int] = set()
            free = iter(range(len(rows) - begun - 1, -1, -1))
            ending = set(self.videos[rows[-begun:]].tolist())
            for place in range(len(rows) - begun, len(rows)):
                if (video := int(self.videos[rows[place]])) in seen:
                    self._swap(rows, place, self._unused(rows, free, ending))
                    video = int(self.videos[rows[place]])
                    ending.add(video)
                seen.add(video)
        return rows

    def _unused(self, rows: NDArray[np.int64], free: Iterator[int], ending: set[int]) -> int:
        """The next free place with a video that is not in ``ending``."""
        for place in free:
            if int(self.videos[rows[place]]) not in ending:
                return place
        raise ValueError(self._impossible(f"an epoch ends with clips of {len(ending)} videos"))

    def _separate(self, rows: NDArray[np.int64], movable: NDArray[np.bool_]) -> None:
        """Moves clips whose video is in their batch already, in place; a batch begins every batch size."""
        videos = self.videos[rows]
        batches = np.arange(len(rows)) // self.global_batch_size
        by_video = np.lexsort((np.arange(len(rows)), movable, videos, batches))
        again = np.zeros(len(rows), bool)
        again[1:] = (np.diff(videos[by_video]) == 0) & (np.diff(batches[by_video]) == 0)
        waiting = np.sort(by_video[again & movable[by_video]])[::-1].tolist()
        for attempt in range(_ATTEMPTS * (len(waiting) + 10)):
            if not waiting:
                return
            place = waiting.pop()
            other, settled = self._place_for(place, videos, movable, attempt)
            self._swap(rows, place, other)
            self._swap(videos, place, other)
            if not settled:
                waiting.append(place)
        raise ValueError(self._impossible("no order was found"))

    def _place_for(
        self, place: int, videos: NDArray[np.int64], movable: NDArray[np.bool_], attempt: int
    ) -> tuple[int, bool]:
        """A place with which ``place`` can change clips, and whether ``place`` is settled then.

        It is of the nearest batch where both clips may be; where there is none, of one where this clip may be: then
        another has to leave the batch, as a new attempt.
        """
        size = self.global_batch_size
        own, video = place // size, videos[place]
        here = videos[own * size : (own + 1) * size]
        if (here == video).sum() == 1:
            return place, True  # by another exchange
        last, second = -(-len(videos) // size), []
        for batch in _nearest(own, last):
            there = slice(batch * size, (batch + 1) * size)
            if (videos[there] == video).any():
                continue
            second.extend(batch * size + np.flatnonzero(movable[there]))
            fitting = np.flatnonzero(movable[there] & ~np.isin(videos[there], here))
            if len(fitting):
                return batch * size + int(fitting[place % len(fitting)]), True
        if not second:
            raise ValueError(self._impossible("one of the videos is in every other batch already"))
        return int(second[int(mix(place, attempt)[0] % np.uint64(len(second)))]), False

    @staticmethod
    def _swap(values: NDArray[np.int64], one: int, other: int) -> None:
        values[one], values[other] = values[other], values[one]

    def _impossible(self, why: str) -> str:
        return (
            f"data.distinct_videos: the set can't be cut into global batches of {self.global_batch_size} clips of as "
            f"many videos: {why}. Lower train.parallel.global_batch_size, or switch data.distinct_videos off (videos "
            "are told apart by ids VIDEO_SEGMENT; other ids that end in _ and a number are taken for such)"
        )
