"""Endings of the files that are taken for videos, sounds and pictures: one list for everything that looks for them."""

from __future__ import annotations

from collections.abc import Mapping

VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m1v", ".m2t", ".m2ts"),
    *(".m2v", ".m4v", ".mk3d", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts"),
    *(".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
)
SOUND_SUFFIXES = (
    *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".ape", ".au", ".caf", ".eac3", ".flac"),
    *(".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav"),
    *(".weba", ".wma", ".wv"),
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
