"""Endings of the files that are taken for videos, sounds and pictures: one list for everything that looks for them."""

from __future__ import annotations

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
