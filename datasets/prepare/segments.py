"""How many clips a file gives, and where they lie in it: what a plan leaves open until files were looked at.

Files without a segment of their own are cut into consecutive clips; a file named by an id alone is its segment
or the whole video. Both are decided by how long the file is, which its last packets tell, before anything is
decoded. So an hour of video is 360 clips to the plan: they are shuffled, shared among workers, put into shards
of the size asked for and resumed after each like any others, and a worker never holds more than one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from datasets.media.length import media_length
from datasets.prepare.sources import Task

CUT_TOLERANCE = 1.0
"""Seconds by which a file may be longer than its segment and still be the segment itself: cutting without
decoding ends at packet borders (VGGSound's files have up to 10.1 s)."""


@dataclass(frozen=True)
class FileLength:
    """Reads how long a task's file is; picklable, so that it can be sent to workers.

    Attributes:
        root: Folder that the tasks' sources are relative to.
    """

    root: str

    def __call__(self, task: Task) -> float | None:
        """Seconds to the end of its packets; None where it has no sound, no picture or can't be read."""
        return media_length(os.path.join(self.root, task.source))


def needs_length(task: Task, clip_seconds: float | None) -> bool:
    """Whether the file's length has a say in what clips a task stands for."""
    if task.start is None and task.end is None:
        return clip_seconds is not None and task.text is None
    return task.cut is None and task.end is not None


Lengths = Callable[[Iterable[Task]], Iterator[float | None]]
"""Gives the length in seconds of each task's file (None where unknown), in order."""


def cut_into_clips(tasks: Iterable[Task], clip_seconds: float | None, lengths: Lengths) -> Iterator[Task]:
    """Tasks of which every one is a clip, and no ``cut`` is None.

    Args:
        tasks: Some of them stand for whole files. Iterated twice at once.
        clip_seconds: Length of consecutive clips; None for one clip a file. A last piece shorter than half of
            it is left out, one file gives one clip at least. A file whose text is known is one clip, since
            nobody knows which piece says what.
        lengths: Gives the files' lengths.
    """
    found = lengths(task for task in tasks if needs_length(task, clip_seconds))
    for task in tasks:
        length = next(found) if needs_length(task, clip_seconds) else None
        if task.start is not None or task.end is not None:
            yield _settle(task, length)
        elif clip_seconds is None or task.text is not None:
            yield task
        else:
            yield from _pieces(task, clip_seconds, length or 0.0)


def _settle(task: Task, length: float | None) -> Task:
    """Decides whether a file is the segment or the video it is from."""
    if task.cut is not None:
        return task
    if task.end is None or length is None:
        return task._replace(cut=False)
    return task._replace(cut=length <= task.end - (task.start or 0.0) + CUT_TOLERANCE)


def _pieces(task: Task, seconds: float, length: float) -> Iterator[Task]:
    count = max(1, math.floor(length / seconds + 0.5 + 1e-6))  # just half is enough
    for i in range(count):
        start = i * seconds
        identifier = f"{task.id}_{start:.3f}" if count > 1 else task.id
        yield task._replace(id=identifier, start=start, end=start + seconds, cut=False)
