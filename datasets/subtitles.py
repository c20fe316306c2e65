"""Subtitles beside a video: what is said in it, and when. SubRip (``.srt``) and WebVTT (``.vtt``)."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.prepare.text_files import check_encoding
from datasets.untrusted import read_bounded

SUFFIXES = (".srt", ".vtt")
_LARGEST = 8 << 20  # bytes; a day's subtitles have about one
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}|&#\d{8,};?")  # the last: numbers of no character


class SubtitleError(ValueError):
    """A file that holds no subtitles; the message says why."""


class Cue(NamedTuple):
    """One subtitle.

    Attributes:
        start: When it appears, in seconds.
        end: When it goes.
        text: On one line, without markup.
    """

    start: float
    end: float
    text: str


def find_subtitles(media: Path) -> Path | None:
    """The subtitles beside a file: those of its name and another ending."""
    return next((path for suffix in SUFFIXES if (path := media.with_suffix(suffix)).is_file()), None)


def read_subtitles(path: Path) -> list[Cue]:
    """Reads a file of subtitles.

    Raises:
        SubtitleError: It is no text in UTF-8, too large, or what it holds are no subtitles.
    """
    check_encoding(path, SubtitleError)
    try:
        lines = read_bounded(path, _LARGEST).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SubtitleError(f"{path} is no text in UTF-8; save it so") from error
    except ValueError as error:
        raise SubtitleError(f"{path} holds no subtitles: {error}") from error
    cues: list[Cue] = []
    places = [place for place, line in enumerate(lines) if _TIMES.match(line)]
    for place, following in zip(places, [*places, len(lines)][1:], strict=True):
        found = _TIMES.match(lines[place])
        assert found is not None
        spoken: list[str] = []
        for line in lines[place + 1 : following]:
            if not line.strip():  # what comes then is the number or name of the next, or a note
                break
            spoken.append(_plain(line))
        cues.append(
            Cue(_seconds(found.groups()[:4]), _seconds(found.groups()[4:]), " ".join(filter(None, spoken)))
        )
    if not cues and any(line.strip() and not line.startswith("WEBVTT") for line in lines):
        raise SubtitleError(f"{path} holds no line of times such as 00:00:01,000 --> 00:00:02,500")
    return cues


def said_between(cues: Sequence[Cue], start: float, end: float | None) -> str | None:
    """What is said from ``start`` to ``end`` seconds (None: to the end), in order; None where nothing is."""
    there = [cue for cue in cues if cue.end > start and (end is None or cue.start < end)]
    return " ".join(cue.text for cue in sorted(there) if cue.text) or None


def _plain(line: str) -> str:
    return html.unescape(_MARKUP.sub("", line)).strip()


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    assert fraction is not None
    return (
        3600 * int(hours or 0)
        + 60 * int(minutes or 0)
        + int(seconds or 0)
        + int(fraction) / 10 ** len(fraction)
    )
