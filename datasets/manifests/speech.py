"""CREMA-D, RAVDESS, IEMOCAP and CMU-MOSEI: acted and spontaneous speech with emotions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from datasets.manifests.rows import (
    EXTRA,
    KNOWN_BROKEN,
    MALFORMED,
    MISSING,
    NO_LABEL,
    ZERO_LENGTH,
    Found,
    ManifestError,
    ManifestRow,
    clean_text,
    find_one,
    list_media,
    read_table,
)
from datasets.untrusted import shown

_VIDEOS = (".mp4", ".flv", ".avi", ".mov", ".mkv")
_CREMA_D = re.compile(r"\d{4}_([A-Z]{3})_([A-Z]{3})_([A-Z0-9]{2})")
_CREMA_D_EMOTIONS = {
    "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness",
}  # fmt: skip
_CREMA_D_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_CREMA_D_CLIPS = 7442
_CREMA_D_KNOWN = {"1076_MTI_SAD_XX": "the published recording is silent"}
_RAVDESS = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_RAVDESS_STATEMENTS = ("Kids are talking by the door.", "Dogs are sitting by the door.")
_RAVDESS_WITHOUT = {"02": "it has no sound", "03": "it has no picture"}
_IEMOCAP = re.compile(r"\[(\d+(?:\.\d+)?) - (\d+(?:\.\d+)?)\]\t(\S+)\t(\w+)\t\[")
_IEMOCAP_SAID = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]: (.*)")
_IEMOCAP_EMOTIONS = {
    "ang": "anger", "dis": "disgust", "exc": "excitement", "fea": "fear", "fru": "frustration", "hap": "happiness",
    "neu": "neutral", "oth": "other", "sad": "sadness", "sur": "surprise",
}  # fmt: skip


def read_crema_d(folder: Path) -> Found:
    """CREMA-D: the emotion is in a file's name (``1001_DFA_ANG_XX``), and with the sentence's code what is said."""
    found = Found(folder)
    for name in list_media(folder, _VIDEOS):
        stem = Path(name).stem
        match = _CREMA_D.fullmatch(stem)
        emotion = _CREMA_D_EMOTIONS.get(match[2]) if match else None
        if match is None or emotion is None:
            found.problem(EXTRA, name, "its name is not ACTOR_SENTENCE_EMOTION_LEVEL")
            continue
        found.add_named(ManifestRow(name, {"emotion": emotion}, _CREMA_D_SENTENCES.get(match[1], "")))
        if reason := _CREMA_D_KNOWN.get(stem):
            found.problem(KNOWN_BROKEN, name, reason)
    if found.rows and (missing := _CREMA_D_CLIPS - len(found.rows)) > 0:
        found.problem(
            MISSING, str(folder), f"{missing} of the {_CREMA_D_CLIPS} published clips are not there"
        )
    return found


def read_ravdess(folder: Path) -> Found:
    """RAVDESS: seven numbers in a file's name, the third the emotion; files of one modality are left out."""
    found = Found(folder)
    for name in list_media(folder, (*_VIDEOS, ".wav")):
        match = _RAVDESS.fullmatch(Path(name).stem)
        if match is None or not 1 <= int(match[3]) <= len(_RAVDESS_EMOTIONS):
            found.problem(
                EXTRA, name, "its name is not seven numbers of two digits, the third an emotion from 01 to 08"
            )
        elif match[1] in _RAVDESS_WITHOUT:
            found.problem(EXTRA, name, _RAVDESS_WITHOUT[match[1]])
        else:
            labels = {
                "emotion": _RAVDESS_EMOTIONS[int(match[3]) - 1],
                "intensity": "strong" if match[4] == "02" else "normal",
            }
            statement = int(match[5]) - 1
            text = _RAVDESS_STATEMENTS[statement] if statement in (0, 1) else ""
            found.add_named(ManifestRow(name, labels, text))
    for name in sorted(_ravdess_of(found.named) - found.named.keys()):
        found.problem(MISSING, name, "the published set has this file")
    return found


def _ravdess_of(names: Iterable[str]) -> set[str]:
    """The files that the published set has of each actor who speaks, or sings, in one of ``names``."""
    wanted = set()
    for modality, channel, actor in {(name[:2], name[3:5], name[-2:]) for name in names}:
        for emotion, intensity, statement, take in product(range(1, 9), (1, 2), (1, 2), (1, 2)):
            is_sung = channel == "02"
            if (emotion == 1 and intensity == 2) or (is_sung and emotion > 6):
                continue  # neutral has no strong intensity; disgust and surprise are not sung
            numbers = f"{emotion:02d}-{intensity:02d}-{statement:02d}-{take:02d}"
            wanted.add(f"{modality}-{channel}-{numbers}-{actor}")
    return wanted


def read_iemocap(folder: Path) -> Found:
    """IEMOCAP: segments of dialogues, a split a session; utterances on which raters did not agree are left out."""
    found = Found(folder)
    tables = sorted(folder.rglob("EmoEvaluation/Ses*.txt"))
    if not tables:
        raise ManifestError(
            f"{folder} should hold Session1/dialog/EmoEvaluation/Ses01F_impro01.txt, ...; there is none"
        )
    for table in tables:
        dialog = table.parent.parent
        said = _said(dialog / "transcriptions" / table.name)
        video = str((dialog / "avi" / "DivX" / f"{table.stem}.avi").relative_to(folder))
        for number, line in enumerate(clean_text(table.read_bytes()).splitlines(), start=1):
            where = f"{table.name}:{number}"
            if (match := _IEMOCAP.match(line)) is None:
                if line.startswith("["):
                    found.problem(
                        MALFORMED, where, f"{shown(line)} is not [start - end], turn, emotion, [v, a, d]"
                    )
                continue
            start, end = float(match[1]), float(match[2])
            emotion = _IEMOCAP_EMOTIONS.get(match[4])
            if emotion is None:
                found.problem(NO_LABEL, where, f"{match[3]} has {match[4]!r}: no majority of the raters")
            elif end <= start:
                found.problem(ZERO_LENGTH, where, f"{match[3]} lasts from {start} to {end}")
            else:
                text, split = said.get(match[3], ""), f"session{table.name[3:5].lstrip('0')}"
                found.add(ManifestRow(video, {"emotion": emotion}, text, split, start, end), where)
    videos = [name for name in list_media(folder, (".avi",)) if "DivX" in name]
    found.note_extra(videos)
    return found


def _said(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    matches = map(_IEMOCAP_SAID.match, clean_text(path.read_bytes()).splitlines())
    return {match[1]: match[2].strip() for match in matches if match}


def read_mosei(folder: Path) -> Found:
    """CMU-MOSEI (and MOSI) as MMSA gives them: ``label.csv`` and ``Raw/VIDEO/CLIP.mp4``."""
    found = Found(folder)
    table = find_one(folder, "label.csv", "video_id, clip_id, text, annotation, mode")
    raw = find_one(folder, "Raw", "a folder of clips for each video").relative_to(folder)
    for where, cells in read_table(table, ("video_id", "clip_id", "text", "annotation", "mode")):
        path = str(raw / cells["video_id"] / f"{cells['clip_id']}.mp4")
        if not cells["annotation"]:
            found.problem(NO_LABEL, where, f"{path} has no annotation")
            continue
        labels = {"sentiment": cells["annotation"].lower()}
        found.add(ManifestRow(path, labels, cells["text"], cells["mode"]), where)
    found.note_extra(str(raw / name) for name in list_media(folder / raw, _VIDEOS))
    return found
