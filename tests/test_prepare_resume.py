"""``datasets.prepare`` killed at any moment, on a full disk, given other settings: what it leaves, how it goes on."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.films import config, contents
from support.videos import write_video

import datasets.output
from datasets.index import ShardIndex
from datasets.journal import PrepareError
from datasets.media import MediaSettings
from datasets.prepare import PrepareConfig, main, prepare
from datasets.shards import ShardError
from datasets.table import ClipTable

PATIENCE = 240.0  # seconds; starting takes 5 on a free machine and has taken 60 on a crowded one


def prepare_and_die(settings: PrepareConfig, calls: int) -> None:
    """Prepares until the n-th file is about to get its name, then ends as ``kill -9`` ends a process."""
    rename = os.replace
    left = calls

    def replace(source, target) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    prepare(settings)


def test_killed_at_every_rename_and_resumed(films: Path, prepared_films: Path, tmp_path: Path):
    settings = config(films, tmp_path / "set", folders_as_classes=True)
    context = multiprocessing.get_context("forkserver")
    killed = 0
    while True:  # before the first rename, the second of what is left, the third, ...
        process = context.Process(target=prepare_and_die, args=(settings, killed + 1))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            break
        killed += 1
        if not (tmp_path / "set" / "index.json").exists():
            with pytest.raises(ShardError):
                ShardIndex.load(tmp_path / "set")
    assert killed >= 5
    assert contents(tmp_path / "set") == contents(prepared_films)


def test_kill_9_of_the_command(films: Path, prepared_films: Path, tmp_path: Path):
    out = tmp_path / "set"
    options = [
        "--folders_as_classes=true",
        "--media.num_frames=3",
        "--min_seconds=0.5",
        "--shard_megabytes=0.05",
    ]
    command = [sys.executable, "-m", "datasets.prepare", str(films), str(out), "--num_workers=2", *options]
    for awaited in ("shard-000001.tar", None):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while awaited is not None and process.poll() is None and not (out / awaited).exists():
            time.sleep(0.002)
        if awaited is not None:
            process.kill()
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output.decode()
    assert contents(out) == contents(prepared_films)


def test_goes_on_with_the_plan_and_the_settings_it_began_with(films: Path, tmp_path: Path):
    source = tmp_path / "in"
    for i in range(6):
        write_video(source / f"{i}.mp4", tone=300 + 30 * i)
    prepare(config(source, tmp_path / "whole"))
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=prepare_and_die, args=(config(source, tmp_path / "set"), 5))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(PrepareError, match="jpeg_quality = 90, now it is 70"):
        prepare(config(source, tmp_path / "set", jpeg_quality=70))
    write_video(source / "0a.mp4")  # not in the plan
    prepare(config(source, tmp_path / "set"))
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    with pytest.raises(PrepareError, match=r"media\.num_frames = 3, now it is 4"):
        prepare(config(source, tmp_path / "set", media=MediaSettings(num_frames=4)))


def test_full_disk(films: Path, prepared_films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "set"
    arguments = [str(films), str(out), "--folders_as_classes=true", "--num_workers=1", "--media.num_frames=3"]
    arguments += ["--min_seconds=0.5", "--shard_megabytes=0.05"]

    def write(self, sample, original=datasets.output.ShardWriter.write) -> None:
        if self.path.name == "shard-000001.tar":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.output.ShardWriter, "write", write)
        with pytest.raises(SystemExit, match=r"no space left on the disk of .* give the same command again"):
            main(arguments)
    assert sorted(path.name for path in out.glob("*")) == [".prepare", "shard-000000.tar"]
    with pytest.raises(ShardError):
        ClipTable.open(out)
    with pytest.raises(ShardError, match=r"is not finished: datasets.prepare .* give the same command again"):
        ShardIndex.load(out)
    main(arguments)
    assert contents(out) == contents(prepared_films)
