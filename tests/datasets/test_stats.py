"""Statistics of prepared shards, log-mel statistics, and the contact sheet."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.shards import make_shards, make_waveform
from support.videos import write_video
from torchaudio.compliance import kaldi

from datasets.decode import decode_audio
from datasets.index import index_folder
from datasets.inspect.contact_sheet import (
    AXIS,
    CAPTION,
    FRAMES,
    GAP,
    HEADING,
    MARGIN,
    SIDE,
    WIDTH,
    contact_sheet,
)
from datasets.inspect.stored_clips import read_clip
from datasets.prepare.fbank_stats import Moments, measure_fbank, spread_rows
from datasets.shards.manifest import ShardIndex
from datasets.shards.table import ClipTable
from datasets.shards.tar import Sample, ShardWriter
from datasets.stats import main, measure_loudness


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("stats") / "set", 7, 3, seconds=0.5, frames=5)


def test_rows_are_spread():
    assert spread_rows(10, 5) == [0, 2, 4, 6, 8]
    assert spread_rows(3, 5) == [0, 1, 2]
    assert spread_rows(0, 5) == []


def test_stored_clips(folder: Path):
    clip = read_clip(folder, ClipTable.open(folder), 4)
    assert clip.sound[:4] == b"fLaC"
    assert [frame[:2] for frame in clip.frames] == [b"\xff\xd8"] * 5


def test_fbank_statistics_are_those_of_all_values():
    values = []
    for number in range(7):
        samples = torch.from_numpy(make_waveform(number, 0.5)).float() / 32768
        settings = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "num_mel_bins": 128}
        values.append(kaldi.fbank((samples - samples.mean())[None], dither=0.0, frame_shift=10, **settings))
    together = torch.cat(values).double()
    moments = Moments()
    for number in range(7):
        moments.add(measure_fbank(make_waveform(number, 0.5), 16_000))
    stats = moments.stats()
    assert stats is not None
    assert stats.clips == 7
    assert stats.mean == pytest.approx(together.mean().item(), abs=1e-5)
    assert stats.std == pytest.approx(together.std(correction=0).item(), abs=1e-5)
    twice_as_fast = measure_fbank(make_waveform(0, 0.5).repeat(2), 32_000)
    assert twice_as_fast.count == pytest.approx(measure_fbank(make_waveform(0, 0.5), 16_000).count, abs=128)
    assert Moments().stats() is None
    assert measure_fbank(make_waveform(0, 0.02), 16_000) == Moments()


def test_loudness(folder: Path):
    levels, failures = measure_loudness(folder, ClipTable.open(folder), 3)
    assert failures == []
    waveform = make_waveform(2, 0.5) / 32768
    assert len(levels) == 3
    assert levels[1].rms == pytest.approx(10 * np.log10((waveform**2).mean()), abs=1e-6)
    assert levels[1].peak == pytest.approx(20 * np.log10(abs(waveform).max()), abs=1e-6)


def test_clips_that_kill_their_decoder_or_are_damaged_are_named(tmp_path: Path, monkeypatch, capsys):
    folder = make_shards(tmp_path / "set", 4, 4, seconds=0.3)
    table = ClipTable.open(folder)
    shard = bytearray((folder / table.shards[0]).read_bytes())
    for row, slots in ((2, table.audio_slots), (3, [0])):  # the sound's tar header, and the metadata
        place = table.members(row)[slots[0]].offset + (0 if row == 2 else 512)
        shard[place : place + 100] = b"\xff" * 100
    (folder / table.shards[0]).write_bytes(shard)

    def dying(data: bytes) -> torch.Tensor:
        sound = decode_audio(data)
        if np.array_equal(sound.numpy(), make_waveform(1, 0.3)):
            os.kill(os.getpid(), signal.SIGSEGV)
        return sound

    monkeypatch.setattr("datasets.inspect.stored_clips.decode_audio", dying)
    levels, failures = measure_loudness(folder, table, 4)
    assert len(levels) == 1
    assert [failure[:11] for failure in failures] == ["clip-00001:", "clip-00002:", "clip-00003:"]
    for failure, what in zip(
        failures, ("SIGSEGV", "its shard is damaged", "its metadata can't be read"), strict=True
    ):
        assert what in failure
    main([str(folder)])
    assert "3 clips can't be decoded, such as clip-00001" in capsys.readouterr().out
    assert (folder / "contact_sheet.png").is_file()


def frames_and_spectrogram(sheet: Image.Image) -> tuple[list[np.ndarray], np.ndarray]:
    """The (SIDE, SIDE, 3) frames of the first clip on a sheet, and its (128, WIDTH, 3) spectrogram."""
    picture = np.asarray(sheet)[HEADING + MARGIN + CAPTION :, MARGIN : MARGIN + WIDTH]
    frames = [picture[:SIDE, i * (SIDE + GAP) :][:, :SIDE] for i in range(FRAMES)]
    return frames, picture[SIDE + AXIS : SIDE + AXIS + 128]


def test_contact_sheet_shows_frames_and_sound(folder: Path):
    index, table = ShardIndex.load(folder), ClipTable.open(folder)
    sheet = contact_sheet(folder, index, table, 4)
    frames, spectrogram = frames_and_spectrogram(sheet)
    # Frames 0 to 3 of clip 0, of five: their green tells them.
    assert [frame[..., 1].mean() for frame in frames] == pytest.approx([0, 23, 46, 69], abs=4)
    brightness = spectrogram[:, : WIDTH // 2].astype(float).sum(axis=(1, 2))
    assert 127 - int(brightness.argmax()) < 30  # a tone at 200 Hz: low, so at the bottom
    assert (spectrogram[:, -100:] == 200).all()  # half a second on an axis of one
    gap = np.asarray(sheet)[HEADING + MARGIN + CAPTION :][:SIDE, MARGIN + SIDE : MARGIN + SIDE + GAP]
    assert (gap == 240).all()


def test_contact_sheet_is_captioned(folder: Path):
    index, table = ShardIndex.load(folder), ClipTable.open(folder)
    sheet = np.asarray(contact_sheet(folder, index, table, 1))[HEADING + MARGIN :, MARGIN : MARGIN + WIDTH]
    inked = np.all(sheet < 150, axis=2)
    caption, times = inked[:CAPTION], inked[CAPTION + SIDE :][:AXIS]
    axis = inked[CAPTION + SIDE + AXIS + 128 :][:AXIS]
    assert caption[: CAPTION // 2, :100].any()  # its id
    assert caption[: CAPTION // 2, -30:].any()  # its duration
    assert caption[CAPTION // 2 :, :100].any()  # its label
    assert all(times[:, i * (SIDE + GAP) :][:, :SIDE].any() for i in range(FRAMES))
    assert axis[:, :20].any()
    assert axis[:, -20:].any()


def test_shards_made_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    video = write_video(tmp_path / "a.mp4", level=0.5).read_bytes()
    (tmp_path / "set").mkdir()
    with ShardWriter(tmp_path / "set" / "a.tar") as writer:
        writer.write(Sample("film", {"id": "a\nfilm"}, [("mp4", video)]))
        writer.write(Sample("noise", {}, [("mp3", b"no sound at all")]))
    index = index_folder(tmp_path / "set")
    table = ClipTable.open(tmp_path / "set", index.fingerprint)
    levels, failures = measure_loudness(tmp_path / "set", table, 2)
    assert [level.rms for level in levels] == [pytest.approx(20 * np.log10(0.5 / 2**0.5), abs=0.5)]
    assert len(failures) == 1
    assert failures[0].startswith("a/noise: sound can't be decoded")
    frames, spectrogram = frames_and_spectrogram(contact_sheet(tmp_path / "set", index, table, 1))
    assert all(frame.std() > 20 for frame in frames)
    assert spectrogram[:, :40].std() > 20
    main([str(tmp_path / "set")])
    output = capsys.readouterr().out
    assert "not known of 2 clips" in output
    assert "1 clips can't be decoded, such as a/noise" in output


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main([str(folder), "--sheet", str(tmp_path / "sheet.png"), "--shown", "2"])
    output = capsys.readouterr().out
    assert "classes: 3 of 3 have clips, 1.00 labels a clip" in output
    assert "fewest 2, median 2, most 3" in output
    assert "loudness of 7 clips" in output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 2 * WIDTH
    with pytest.raises(SystemExit):
        main([str(folder), "--shown", "0"])
    assert "must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"datasets\.stats: .*does not exist"):
        main([str(tmp_path / "nothing")])
