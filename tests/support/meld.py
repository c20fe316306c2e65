"""A MELD of nine rows with what is odd about the published one; its files hold no videos."""

from __future__ import annotations

from pathlib import Path

HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\r\n"
)
NO_VIDEO = b"no video"


def touch(folder: Path, *names: str) -> None:
    """Files that are no videos."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(NO_VIDEO)


def meld_row(text: str, emotion: str, sentiment: str, dialogue: int, utterance: int, times=None) -> str:
    start, end = times or ("0:00:01,000", "00:00:02,500")
    return f'1,"{text}",Ross,{emotion},{sentiment},{dialogue},{utterance},1,2,"{start}","{end}"\r\n'


def write_meld(root: Path) -> Path:
    """Writes it and returns its folder."""
    touch(root / "train" / "train_splits", "dia0_utt0.mp4", "dia125_utt3.mp4", "dia0_utt9.mp4")
    touch(root / "dev" / "dev_splits_complete", "dia0_utt0.mp4")
    test = root / "test" / "output_repeated_splits_test"
    touch(test, "dia0_utt0.mp4", "dia0_utt1.mp4", "final_videos_testdia0_utt1.mp4", "._dia0_utt0.mp4")
    (test / "dia1_utt0.mp4").write_bytes(b"")
    # U+0092, as older copies have it
    train = HEADER + meld_row("I can\x92t, “no”", "neutral", "neutral", 0, 0)
    train += meld_row("Broken", "anger", "negative", 125, 3) + meld_row("Twice", "joy", "positive", 0, 0)
    (root / "train" / "train_sent_emo.csv").write_bytes(train.encode())
    dev = HEADER + meld_row("Hi", "joy", "positive", 0, 0) + meld_row("Gone", "fear", "negative", 110, 7)
    (root / "dev_sent_emo.csv").write_bytes(dev.encode())
    rows = HEADER + meld_row("Caf\xe9 \x92s", "sadness", "negative", 0, 0).replace("\x92", "’")
    rows += meld_row("Recut", "disgust", "negative", 0, 1)
    rows += meld_row("Nothing", "surprise", "positive", 1, 0, ("0:16:16,059", "00:16:16,059"))
    (root / "test_sent_emo.csv").write_bytes(rows.encode("cp1252"))
    return root
