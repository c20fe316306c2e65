"""How many clips a file gives, by its length."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support.videos import write_video

from datasets.prepare.segments import FileLength, cut_into_clips
from datasets.prepare.sources import Task, rejected_clip


def lengths(tasks: Iterable[Task]) -> Iterator[float | None]:
    """Files are called what they are long."""
    for task in tasks:
        yield float(task.source) if task.source.replace(".", "").isdigit() else None


def test_whole_files_become_consecutive_clips():
    tasks = [Task("25.1", "a"), Task("10.04", "b"), Task("3", "c"), Task("damaged", "d")]
    clips = cut_into_clips(tasks, 10.0, lengths)
    assert [(clip.id, clip.start, clip.end) for clip in clips] == [
        ("a_0.000", 0.0, 10.0),
        ("a_10.000", 10.0, 20.0),
        ("a_20.000", 20.0, 30.0),
        ("b", 0.0, 10.0),
        ("c", 0.0, 10.0),
        ("d", 0.0, 10.0),
    ]
    assert list(cut_into_clips(tasks, None, lengths)) == tasks
    half = list(cut_into_clips([Task("25.0", "a")], 10.0, lengths))
    assert [clip.start for clip in half] == [0.0, 10.0, 20.0]


def test_a_file_not_longer_than_its_segment_is_the_segment():
    names = ["10.9", "11.1", "damaged"]
    clips = list(cut_into_clips([Task(name, name, (), 30.0, 40.0, None) for name in names], 10.0, lengths))
    assert [clip.cut for clip in clips] == [True, False, False]
    assert all((clip.start, clip.end) == (30.0, 40.0) for clip in clips)
    settled = [Task(name, name, (), 30.0, 40.0, True) for name in names]
    assert list(cut_into_clips(settled, 10.0, lengths)) == settled


def test_lengths_of_real_files(tmp_path: Path):
    write_video(tmp_path / "a.mp4", seconds=2.0)
    (tmp_path / "b.mp4").write_text("no film")
    found = [FileLength(str(tmp_path))(Task(name, name)) for name in ("a.mp4", "b.mp4", "gone.mp4")]
    assert found == [pytest.approx(2.0, abs=0.1), None, None]


def test_rejects_say_which_piece_of_a_file_they_are():
    task = Task("long.mp4", "long_20.000", start=20.0, end=30.0)
    assert rejected_clip(task, "timed_out", "took long").detail == "took long (at 20 s)"
    assert rejected_clip(task._replace(cut=True), "silent", "is quiet").detail == "is quiet"


def test_what_is_no_regular_file_has_no_length(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait
    assert FileLength(str(tmp_path))(Task("pipe.mp4", "pipe")) is None
