"""``datasets.prepare`` killed at any moment, on a full disk, given other settings: what it leaves, how it goes on."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.films import config, contents
from support.videos import write_video

import datasets.prepare.run
import datasets.prepare.shard_output
from datasets.media.container import MediaSettings
from datasets.prepare.encode import Encoded, Encoder, Work
from datasets.prepare.resume import PrepareError
from datasets.prepare.run import PrepareConfig, main, prepare
from datasets.prepare.sources import Task
from datasets.shards.manifest import ShardIndex
from datasets.shards.table import ClipTable
from datasets.shards.tar import ShardError

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


def test_the_same_files_by_other_names(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [str(path.relative_to(films)) for path in sorted(films.rglob("*.mp4"))[:2]]
    (tmp_path / "here.csv").write_text("path,label\n" + "".join(f"{name},x\n" for name in names))
    monkeypatch.chdir(tmp_path)
    link = Path("films")
    link.symlink_to(films)
    prepare(config(link, tmp_path / "out", labels="here.csv"))
    before = contents(tmp_path / "out")
    (tmp_path / "here.csv").rename(tmp_path / "there.csv")
    labels = str(tmp_path / "there.csv")
    prepare(config(films, tmp_path / "out", labels=labels))
    assert contents(tmp_path / "out") == before
    with pytest.raises(PrepareError, match=r"begun with source = 'films', now it is"):
        prepare(config(tmp_path, tmp_path / "out", labels=labels))
    (tmp_path / "there.csv").write_text(f"path,label\n{names[0]},x\n")
    with pytest.raises(PrepareError, match=r"begun with labels = 'here.csv', now it is '.*there.csv'"):
        prepare(config(films, tmp_path / "out", labels=labels))


class Unmounting(Encoder):
    """The disk of the films goes when one of them is to be read."""

    def __call__(self, work: Work) -> Encoded:
        root = Path(self.root)
        if "07-x_" in work.task.source and root.exists():
            root.rename(root.with_name("unmounted"))
        return super().__call__(work)


def test_a_disk_that_goes_stops_the_run(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, unmounted, out = tmp_path / "disk", tmp_path / "unmounted", tmp_path / "set"
    shutil.copytree(films, source)
    settings = config(source, out, folders_as_classes=True)
    with monkeypatch.context() as patch:
        patch.setattr(datasets.prepare.run, "Encoder", Unmounting)
        with pytest.raises(PrepareError, match=r"disk is not there any more; was its disk unmounted"):
            prepare(settings)
    with pytest.raises(PrepareError, match="not there any more"):
        prepare(settings)
    source.mkdir()  # a mount point
    with pytest.raises(PrepareError, match="not there any more"):
        prepare(settings)
    source.rmdir()
    unmounted.rename(source)
    assert list(out.glob("*.tar"))
    prepare(settings)
    index = ShardIndex.load(out)
    assert index.samples == 12
    assert index.rejects is not None
    assert index.rejects.counts == {}


def test_a_disk_that_goes_before_lengths_are_read_makes_no_plan(films: Path, tmp_path: Path):
    with pytest.raises(PrepareError, match="not there any more"):
        list(datasets.prepare.run._lengths(config(tmp_path / "gone", tmp_path / "out"), [Task("a.mp4", "a")]))


def test_full_disk(films: Path, prepared_films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "set"
    arguments = [str(films), str(out), "--folders_as_classes=true", "--num_workers=1", "--media.num_frames=3"]
    arguments += ["--min_seconds=0.5", "--shard_megabytes=0.05"]

    def write(self, sample, original=datasets.prepare.shard_output.ShardWriter.write) -> None:
        if self.path.name == "shard-000001.tar":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.prepare.shard_output.ShardWriter, "write", write)
        with pytest.raises(SystemExit, match=r"no space left on the disk of .* give the same command again"):
            main(arguments)
    assert sorted(path.name for path in out.glob("*")) == [".prepare", "shard-000000.tar"]
    with pytest.raises(ShardError):
        ClipTable.open(out)
    with pytest.raises(ShardError, match=r"is not finished: datasets.prepare .* give the same command again"):
        ShardIndex.load(out)
    main(arguments)
    assert contents(out) == contents(prepared_films)


def test_a_second_process_is_kept_out_of_the_folder(films: Path, tmp_path: Path):
    out = tmp_path / "set"
    out.mkdir()
    other = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(PrepareError, match=r"another datasets.prepare is at work in .*set: wait"):
            prepare(config(films, out))
        assert not any(out.iterdir())
    finally:
        os.close(other)
    assert prepare(config(films, out)) == [out]
