"""A world in which it can be proved what fusion is worth: words, timbre and shape carry one independent bit each.

=========  ======================================================================  ============================
task       class                                                                   best possible accuracy
=========  ======================================================================  ============================
emotion    one of eight, by all three bits                                         12.5, 25, 50, 100 % with 0,
                                                                                   1, 2, 3 of the modalities
sentiment  words XOR timbre: praise in the one tone is meant, in the other it is   50 %, and 100 % with both
           irony                                                                   words and timbre
=========  ======================================================================  ============================

No weighted mean of what each modality says by itself is above 50 % in ``sentiment``. All else that differs from clip to
clip (size, place, colour, speed, the rest of the sentence) is drawn alike whatever the bits are. Eight clips in a row
have all combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EMOTIONS = ("anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust")
SENTIMENTS = ("negative", "positive")
TASKS = ("emotion", "sentiment")
_WORDS = (
    ("awful", "dreadful", "horrible", "terrible", "a disaster", "a waste"),
    ("brilliant", "delightful", "lovely", "wonderful", "a pleasure", "a triumph"),
)
_BEGINNINGS = (
    "I have seen the film again",
    "we went to the concert",
    "they moved the meeting",
    "she cooked for us",
)
_ENDINGS = ("as ever", "to be honest", "if you ask me", "from the beginning", "in every way", "believe me")


class Bits(NamedTuple):
    """What a clip's modalities tell, 0 or 1 each."""

    words: int
    timbre: int
    shape: int


def bits_of(index: int) -> Bits:
    """The bits of the clip of an index, in any split."""
    return Bits(index & 1, index >> 1 & 1, index >> 2 & 1)


def labels_of(index: int) -> dict[str, str]:
    """The class of a clip in each of TASKS."""
    words, timbre, shape = bits_of(index)
    return {"emotion": EMOTIONS[words + 2 * timbre + 4 * shape], "sentiment": SENTIMENTS[words ^ timbre]}


def utterance(bits: Bits, rng: np.random.Generator) -> list[str]:
    """What is said, in two parts. Only the word in the middle tells the bit, and each as often as the others."""
    beginning, word, ending = (rng.integers(len(choices)) for choices in (_BEGINNINGS, _WORDS[0], _ENDINGS))
    return [_BEGINNINGS[beginning], f"and it was {_WORDS[bits.words][word]} {_ENDINGS[ending]}"]


def subtitles(parts: Sequence[str], seconds: float) -> str:
    """SubRip subtitles: the parts one after the other, together as long as the clip."""
    edges = [_clock(seconds * i / len(parts)) for i in range(len(parts) + 1)]
    cues = [f"{i + 1}\n{edges[i]} --> {edges[i + 1]}\n{part}\n" for i, part in enumerate(parts)]
    return "\n".join(cues)


def _clock(seconds: float) -> str:
    """``00:01:02,345``."""
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{milliseconds:03d}"
