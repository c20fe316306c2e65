"""MELD: utterances of Friends with emotion and sentiment (three CSVs, three folders of clips)."""

from __future__ import annotations

import re
from pathlib import Path

from datasets.manifests.rows import (
    KNOWN_BROKEN,
    ZERO_LENGTH,
    Found,
    ManifestError,
    ManifestRow,
    find_one,
    is_number,
    list_media,
    read_table,
)
from datasets.untrusted import shown

_SPLITS = {
    "train": ("train_sent_emo.csv", "train_splits"),
    "dev": ("dev_sent_emo.csv", "dev_splits_complete"),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test"),
}
_COLUMNS = ("Utterance", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")
_RECUT = "final_videos_test"
_KNOWN = {
    ("train", "dia125_utt3"): "the published file can't be decoded",
    ("dev", "dia110_utt7"): "the published set lacks this file",
    ("train", "dia309_utt0"): "the published file is not cut to the utterance",
    ("test", "dia38_utt4"): "the published file is not cut to the utterance (305 s)",
    ("test", "dia220_utt0"): "the published file is not cut to the utterance (235 s)",
}


def read_meld(folder: Path, recut: bool = False) -> Found:
    """The rows of MELD.

    Args:
        folder: Holds ``train_sent_emo.csv``, ... and the folders of clips, at any depth.
        recut: Use the re-cut ``final_videos_testdia*`` for the test clips that have one.

    Raises:
        ManifestError: A CSV or a folder of clips is missing, or a row can't be read.
    """
    found = Found(folder)
    for split, (table, clips) in _SPLITS.items():
        rows = find_one(folder, table, f"MELD's rows of split {split}")
        place = find_one(folder, clips, f"MELD's clips of split {split}").relative_to(folder)
        files = [str(place / name) for name in list_media(folder / place, (".mp4",))]
        recuts = {name.replace(_RECUT, "") for name in files if _RECUT in name} if recut else set()
        for where, cells in read_table(rows, _COLUMNS):
            for column in ("Dialogue_ID", "Utterance_ID"):
                if not is_number(cells[column]):
                    raise ManifestError(
                        f"{rows.with_name(where)}: {column} is {shown(cells[column])}, no number"
                    )
            name = f"dia{int(cells['Dialogue_ID'])}_utt{int(cells['Utterance_ID'])}"
            path = str(place / f"{name}.mp4")
            if path in recuts:
                path = str(place / f"{_RECUT}{name}.mp4")
            labels = {"emotion": cells["Emotion"].lower(), "sentiment": cells["Sentiment"].lower()}
            found.add(ManifestRow(path, labels, cells["Utterance"], split), where)
            if seconds(cells["EndTime"]) <= seconds(cells["StartTime"]):
                found.problem(
                    ZERO_LENGTH, where, f"{name} lasts from {cells['StartTime']} to {cells['EndTime']}"
                )
            if reason := _KNOWN.get((split, name)):
                found.problem(KNOWN_BROKEN, where, f"{name}: {reason}")
        found.note_extra(files)
    return found


def seconds(time: str) -> float:
    """A time of a row (``00:16:16,059``, also with one digit for hours) in seconds."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4}):(\d{1,4})[,.](\d{1,9})", time)
    if match is None:
        return float("nan")
    hours, minutes, whole, rest = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(f"{whole}.{rest}")
