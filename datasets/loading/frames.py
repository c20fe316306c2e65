"""Which of a clip's stored frames are read.

A choice is called with the number of frames stored and the ticket's seed, and gives their places. What was
chosen travels with the batch (``frame_index`` of ``num_stored``, with ``frame_times`` where the set knows
them), so that sound can be cut to fit a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets.loading.plan import mix

_FRAME_STREAM = 0xF4A3E

FrameChoice = Callable[[int, int], Sequence[int]]
"""Which of a clip's frames to read: (number stored, the ticket's seed) -> places, from 0."""


class TooFewFramesError(ValueError):
    """A clip has fewer frames than were asked for."""


def random_frame(num_stored: int, seed: int) -> Sequence[int]:
    """One frame, which the ticket's seed picks."""
    return (int(mix(seed, _FRAME_STREAM)[0]) % num_stored,)


def middle_frame(num_stored: int, seed: int) -> Sequence[int]:
    """The middle frame (of an even number the later of the two)."""
    return (num_stored // 2,)


def all_frames(num_stored: int, seed: int) -> Sequence[int]:
    """All frames in order."""
    return range(num_stored)


@dataclass(frozen=True)
class RandomFrame:
    """`random_frame`, of no fewer than ``least`` stored ones, and of as many of a video.

    Attributes:
        least: How many; fewer are an error.
    """

    least: int

    def __call__(self, num_stored: int, seed: int) -> Sequence[int]:
        """See `FrameChoice`.

        Raises:
            TooFewFramesError: Fewer are stored.
        """
        _check_stored(num_stored, self.least)
        return random_frame(num_stored, seed)


@dataclass(frozen=True)
class EvenFrames:
    """``count`` frames, evenly spaced, in order: those in the middle of ``count`` equal stretches.

    Attributes:
        count: How many, N.
        repeat: Of fewer stored frames take some twice; without it a clip with fewer is an error.
    """

    count: int
    repeat: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the number of frames must be at least 1, not {self.count}")

    def __call__(self, num_stored: int, seed: int) -> Sequence[int]:
        """See `FrameChoice`.

        Raises:
            TooFewFramesError: Fewer are stored, and none may be taken twice.
        """
        _check_stored(num_stored, frames_needed(self))
        return [(2 * i + 1) * num_stored // (2 * self.count) for i in range(self.count)]


def _check_stored(num_stored: int, needed: int) -> None:
    if num_stored < needed:
        raise TooFewFramesError(f"the clip has {num_stored} frames, fewer than the {needed} needed")


def frames_needed(choice: FrameChoice) -> int:
    """The least number of stored frames with which ``choice`` can do."""
    if isinstance(choice, RandomFrame):
        return choice.least
    return choice.count if isinstance(choice, EvenFrames) and not choice.repeat else 1


def frames_wanted(choice: FrameChoice) -> int:
    """Into how many frames a video is best divided for ``choice``; 1 where that is all the same."""
    if isinstance(choice, RandomFrame):
        return choice.least
    return choice.count if isinstance(choice, EvenFrames) else 1
