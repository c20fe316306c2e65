"""Endings of the files that are taken for videos, sounds and pictures: one list for everything that looks for them."""

from __future__ import annotations

from collections.abc import Mapping

VIDEO_SUFFIXES = (
    *(
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
    ),
    *(".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
)
SOUND_SUFFIXES = (
    *(
        ".aac",
        ".ac3",
        ".aif",
        ".aiff",
        ".amr",
        ".ape",
        ".au",
        ".caf",
        ".flac",
        ".m4a",
        ".mka",
        ".mp2",
        ".mp3",
    ),
    *(".oga", ".ogg", ".opus", ".wav", ".weba", ".wma", ".wv"),
)
PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png")

_SHOWN = 8


def describe_others(others: Mapping[str, int]) -> str:
    """What else lies in a folder, for people: ``3 .txt, 1 .pdf, 2 without an ending``.

    Args:
        others: How many files of each ending.
    """
    counts = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count} {suffix or 'without an ending'}" for suffix, count in counts[:_SHOWN]]
    rest = sum(count for _, count in counts[_SHOWN:])
    return ", ".join([*words, *([f"{rest} of other endings"] if rest else [])])
