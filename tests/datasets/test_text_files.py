"""Lists and label files as people save them, and mistakes in them: said with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.prepare.classes import read_classes
from datasets.prepare.labels import LabelFileError, read_label_file
from datasets.prepare.sources import PrepareError, listed_names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_are_no_part_of_names(tmp_path: Path, encoding: str, end: str):
    path = tmp_path / "list.txt"
    path.write_bytes(f"a.mp4{end}ü b.mp4{end}".encode(encoding))
    assert list(listed_names(path)) == ["a.mp4", "ü b.mp4"]
    assert [label.name for label in read_classes(path).labels] == ["a.mp4", "ü b.mp4"]
    path.write_bytes(f"path,label{end}a.mp4,dog{end}".encode(encoding))
    assert [row.labels for row in read_label_file(path).rows()] == [("dog",)]


def test_home_folders_in_lists_and_label_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "list.txt"
    path.write_text("~/a.mp4\n$HOME/b.mp4\n${HOME}/c.mp4\na~/d.mp4\n")
    expected = ["/home/me/a.mp4", "/home/me/b.mp4", "/home/me/c.mp4", "a~/d.mp4"]
    assert list(listed_names(path)) == expected
    path.write_text("path\n" + path.read_text())
    assert [row.name for row in read_label_file(path).rows()] == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_said(tmp_path: Path, encoding: str):
    path = tmp_path / "list.txt"
    path.write_bytes("path,label\na.mp4,dog\n".encode(encoding))
    with pytest.raises(PrepareError, match=r"UTF-16.*save it as UTF-8"):
        list(listed_names(path))
    for read in (read_label_file, read_classes):
        with pytest.raises(LabelFileError, match=r"UTF-16.*save it as UTF-8"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('path,label\na.mp4,dog\nb.mp4,"cat\n' + "c.mp4,cat\n" * 30_000, ":3: .*quote"),
        ('path,label\na.mp4,"dog\nb.mp4,cat\n', ":2: .*quote"),
        ('path,label\na.mp4,"dog\nb.mp4,"cat"\n', ":2: .*quote"),
        ("path,start,end\na.mp4,1,inf\n", ":2: 'inf' is no number of seconds"),
        ("path,start,end\na.mp4,1,1e400\n", ":2: '1e400' is no number of seconds"),
        ("path,start,end\na.mp4,nan,2\n", ":2: 'nan' is no number of seconds"),
        ("path,start,end\na.mp4,0,1\na.mp4,-1,2\n", ":3: '-1' is no number of seconds"),
        ("path,label,Label\na.mp4,x,y\n", ":1: the header has 2 columns 'label'"),
        ("path,labels,label\na.mp4,x,y\n", ":1: the header has 2 columns 'label'"),
    ],
)
def test_mistakes_in_label_files_are_named_with_their_line(tmp_path: Path, content: str, message: str):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(LabelFileError, match=message):
        list(read_label_file(path).rows())
