"""Subtitles as people save them: what is said between two times."""

from pathlib import Path

import pytest

from datasets.subtitles import SubtitleError, find_subtitles, read_subtitles, said_between

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500 X1:100 X2:200
<i>Good</i> evening,
{\\an8}all of you.

2
00:00:02,500 --> 00:00:04,000

3
01:00:00,5 --> 01:00:01,250
The end
"""
VTT = """WEBVTT - a title

NOTE not
spoken

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Ann>Good</v> evening,
all of you.

01:00:00.500 --> 01:00:01.250
The end &amp; more
"""


@pytest.mark.parametrize(
    ("name", "content", "end"), [("a.srt", SRT, "The end"), ("a.vtt", VTT, "The end & more")]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_both_forms(tmp_path: Path, name: str, content: str, end: str, newline: str):
    (tmp_path / name).write_bytes(content.replace("\n", newline).encode())
    path = find_subtitles(tmp_path / "a.mp4")
    assert path == tmp_path / name
    assert path is not None
    cues = read_subtitles(path)
    assert [cue for cue in cues if cue.text] == [
        (1.0, 2.5, "Good evening, all of you."),
        (3600.5, 3601.25, end),
    ]
    assert said_between(cues, 0, None) == f"Good evening, all of you. {end}"
    assert said_between(cues, 0, 1.0) is None
    assert said_between(cues, 2.4, 10) == "Good evening, all of you."
    assert said_between(cues, 2.5, 10) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\n00:00 -> 00:01\nx\n", "holds no line of times"),
        ("1\n00:00:01,000 --> 00:00:02,000\nh\xe9\n".encode("latin-1"), "no text in UTF-8"),
        ("1\n00:00:01,000 --> 00:00:02,000\nx\n".encode("utf-16"), "UTF-16"),
        (b"9" * 5000 + b":00:01,000 --> 00:00:02,000\nx\n", "holds no line of times"),
        (b"x" * ((8 << 20) + 1), "it is larger than the 8388608 bytes"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_what_is_none_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.srt"
    path.write_bytes(content)
    with pytest.raises(SubtitleError, match=message):
        read_subtitles(path)
    assert find_subtitles(tmp_path / "b.mp4") is None


def test_a_file_without_a_word_is_silence(tmp_path: Path):
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n")
    assert said_between(read_subtitles(tmp_path / "a.vtt"), 0, None) is None


def test_numbers_of_no_character_are_left_out(tmp_path: Path):
    said = f"00:01,0 --> 00:02,0\na &#{'9' * 5000}; &#98;\n"
    (tmp_path / "a.srt").write_text(said)
    assert [cue.text for cue in read_subtitles(tmp_path / "a.srt")] == ["a  b"]
