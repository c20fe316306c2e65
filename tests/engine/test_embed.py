"""Vectors of shards and files: each clip's own, whatever the order of work, the batch, or an interruption."""

import csv
import importlib.util
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.processes import run_ranks
from support.shards import make_picture, make_shards, make_waveform
from support.small_models import small_model
from support.sources import randomize
from support.videos import write_video

from datasets.batch import AVBatch
from datasets.decode import decode_audio, decode_frame
from datasets.loading.config import DataConfig
from datasets.loading.reader import all_frames
from datasets.loading.workers import LoaderStalledError
from datasets.media.suffixes import describe_others
from engine.embed.embedder import EarsightEmbedder, Vectors
from engine.embed.run import embed, load_embedder, main
from engine.embeddings import main as measure_main
from engine.embeddings import read_embeddings
from engine.inference.parts import PartStore, Work
from engine.inference.sources import ReadSettings, open_source
from engine.parallel.world import World
from models import FbankConfig, PretrainedEncoders
from models.weights.description import Description, save_described

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    mae = randomize(small_model(audio_length=128))
    save_described(
        path, mae.state_dict(), Description(mae.config, FbankConfig(target_length=128, num_mel_bins=32))
    )
    return path


@pytest.fixture(scope="module")
def embedder(model) -> EarsightEmbedder:
    found = load_embedder(str(model))
    assert isinstance(found, EarsightEmbedder)
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("set") / "shards", 10, 4)


def encoders_of(embedder: EarsightEmbedder) -> PretrainedEncoders:
    return embedder.encoders


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_shards_with_labels(tmp_path, embedder, shards, suffix):
    if suffix == ".parquet" and not HAS_PYARROW:
        pytest.skip("pyarrow is not installed")
    target = tmp_path / f"out{suffix}"
    counts = embed(embedder, open_source(str(shards), embedder.needs), target, work=Work(4, 6))
    assert counts == (10, 0)
    found = read_embeddings(target)
    assert found.ids == [f"clip-{i:05d}" for i in range(10)]
    assert {name: tuple(value.shape) for name, value in found.streams.items()} == dict.fromkeys(
        ("audio", "visual", "joint"), (10, 32)
    )
    assert found.labels is not None
    assert found.labels.argmax(dim=1).tolist() == [i % 3 for i in range(10)]
    wave = torch.from_numpy(make_waveform(7, 1.0))[None]
    with torch.no_grad():
        expected = encoders_of(embedder)(wave).audio
    torch.testing.assert_close(found.streams["audio"][7:8], expected, rtol=0, atol=1e-5)
    assert not target.with_name(f"{target.name}.parts").exists()
    assert not target.with_name(f"{target.name}.rejects.csv").exists()


def test_vectors_do_not_depend_on_batches_and_parts(tmp_path, embedder, shards):
    found = []
    for number, (batch_size, part_size) in enumerate([(1, 3), (10, 10)]):
        target = tmp_path / f"{number}.npz"
        embed(embedder, open_source(str(shards), embedder.needs), target, work=Work(batch_size, part_size))
        found.append(read_embeddings(target).streams)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=2e-6)


class Interrupted(EarsightEmbedder):
    """Stops after some batches, and counts those it is given."""

    def __init__(self, encoders: PretrainedEncoders, stop_after: int) -> None:
        super().__init__(encoders)
        self.batches, self.stop_after = 0, stop_after

    def forward(self, batch: AVBatch) -> Vectors:
        self.batches += 1
        if self.batches > self.stop_after:
            raise KeyboardInterrupt
        return super().forward(batch)


def test_an_interrupted_job_goes_on_where_it_was(tmp_path, embedder, shards):
    source = open_source(str(shards), embedder.needs)
    embed(embedder, source, tmp_path / "whole.npz", work=Work(2, 4))
    first = Interrupted(encoders_of(embedder), stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        embed(first, source, tmp_path / "out.npz", work=Work(2, 4))
    assert not (tmp_path / "out.npz").exists()
    second = Interrupted(encoders_of(embedder), stop_after=99)
    with pytest.raises(ValueError, match="another model, source or settings"):
        embed(second, source, tmp_path / "out.npz", work=Work(2, 5))
    embed(second, source, tmp_path / "out.npz", work=Work(2, 4))
    assert second.batches == 3  # clips 4 … 9: the first part was kept
    whole, resumed = (read_embeddings(tmp_path / name) for name in ("whole.npz", "out.npz"))
    assert whole.ids == resumed.ids
    assert all(torch.equal(value, resumed.streams[name]) for name, value in whole.streams.items())
    with pytest.raises(ValueError, match="there already"):
        embed(second, source, tmp_path / "out.npz")


def test_videos_and_the_list_of_rejects(tmp_path, embedder):
    videos = tmp_path / "videos"
    for number in range(3):
        write_video(videos / "b" / f"{number}.mp4", seconds=1.0 + number / 2, tone=300 + 100 * number)
    write_video(videos / "a" / "silent.mp4", sound_seconds=0)
    (videos / "broken.mp4").write_bytes(b"no video")
    source = open_source(str(videos), embedder.needs)
    assert embed(embedder, source, tmp_path / "out.npz", work=Work(2)) == (3, 2)
    assert read_embeddings(tmp_path / "out.npz").ids == ["b/0.mp4", "b/1.mp4", "b/2.mp4"]
    with (tmp_path / "out.npz.rejects.csv").open() as file:
        rejects = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert rejects.keys() == {"a/silent.mp4", "broken.mp4"}
    assert "audio" in rejects["a/silent.mp4"]


def test_sounds_alone_and_pictures_alone(tmp_path, embedder):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", make_waveform(number, 0.3 + 0.4 * number), 16_000)
        Image.fromarray(make_picture(number, 0, (48, 40))).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="4 sound, 3 picture"):
        open_source(str(tmp_path), embedder.needs)
    embed(embedder, open_source(str(tmp_path), embedder.needs, ReadSettings("sound")), tmp_path / "s.npz")
    sounds = read_embeddings(tmp_path / "s.npz")
    assert sounds.ids == ["0.wav", "1.wav", "2.wav"]
    assert "can't be decoded: not a media file" in (tmp_path / "s.npz.rejects.csv").read_text()
    assert list(sounds.streams) == ["audio"]
    wave = torch.from_numpy(make_waveform(0, 0.3))[None]
    embed(embedder, open_source(str(tmp_path), embedder.needs, ReadSettings("picture")), tmp_path / "p.npz")
    pictures = read_embeddings(tmp_path / "p.npz")
    assert list(pictures.streams) == ["visual"]
    frame = decode_frame(bytearray((tmp_path / "1.png").read_bytes()), 32)
    with torch.no_grad():
        torch.testing.assert_close(
            sounds.streams["audio"][:1], encoders_of(embedder)(wave).audio, atol=1e-5, rtol=0
        )
        expected = encoders_of(embedder)(frames=frame[None]).visual
    torch.testing.assert_close(pictures.streams["visual"][1:2], expected, atol=1e-5, rtol=0)


def test_all_frames_are_averaged(tmp_path, embedder, shards):
    every = EarsightEmbedder(encoders_of(embedder), all_frames)
    embed(every, open_source(str(shards), every.needs), tmp_path / "all.npz")
    singles = []
    for number in range(2):
        one = EarsightEmbedder(encoders_of(embedder), [_first, _second][number])
        embed(one, open_source(str(shards), one.needs), tmp_path / f"{number}.npz")
        singles.append(read_embeddings(tmp_path / f"{number}.npz").streams["visual"])
    found = read_embeddings(tmp_path / "all.npz").streams["visual"]
    torch.testing.assert_close(found, torch.stack(singles).mean(dim=0), atol=1e-5, rtol=0)


def _first(num_stored: int, seed: int) -> tuple[int]:
    return (0,)


def _second(num_stored: int, seed: int) -> tuple[int]:
    return (1,)


def test_the_command_and_the_measurement(tmp_path, model, shards, capsys):
    for name in ("train", "test"):
        main(
            [str(model), str(shards), str(tmp_path / f"{name}.npz"), "--num_workers", "0", "--device", "cpu"]
        )
    assert "10 clips embedded, 0 could not be read" in capsys.readouterr().out
    with np.load(tmp_path / "train.npz", allow_pickle=False) as file:
        assert file["classes"].tolist() == ["class 0", "class 1", "class 2"]
        assert json.loads(str(file["origin"]))["model"] == str(model)
    measure_main([str(tmp_path / "train.npz"), str(tmp_path / "test.npz")])
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(said["linear_joint_top1"]) > 0.9  # fitted and measured on the same clips
    assert float(said["retrieval_chance_r1"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nowhere", "a.npz", "no such folder"),
        (".", "a.npz", "holds no video"),
        (".", "a.csv", "must end in .parquet or .npz"),
    ],
)
def test_mistakes_on_the_command_line_are_errors(tmp_path, model, capsys, source, target, message):
    with pytest.raises(SystemExit) as caught:
        main([str(model), str(tmp_path / source), str(tmp_path / target), "--device", "cpu"])
    assert caught.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--device", "cuda:99", "--device cuda:99 can't be used here"),
        ("--batch_size", "0", "0 is not a number of at least 1"),
        ("--part_size", "-3", "-3 is not a number of at least 1"),
    ],
)
def test_settings_that_can_t_be_meant(tmp_path, model, shards, capsys, option, value, message):
    with pytest.raises(SystemExit):
        main([str(model), str(shards), str(tmp_path / "out.npz"), option, value])
    assert message in capsys.readouterr().err


def test_nothing_but_rejects_is_an_error(tmp_path, embedder):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of the 1 clips could be read.*broken\.mp4"):
        embed(embedder, open_source(str(tmp_path), embedder.needs), tmp_path / "out.npz")


def test_the_example_s_page(tmp_path, model):
    from examples.use_encoders import main as example_main

    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", tone=300 + 100 * number)
    Image.fromarray(make_picture(1, 0, (48, 40))).save(tmp_path / "asked <b>.png")
    page = tmp_path / "page.html"
    example_main([str(model), str(tmp_path / "videos"), str(page), "--answers", "2"])
    text = page.read_text()
    assert text.count("<section>") == 3
    assert text.count("<audio") == 6
    assert text.count("own sound: rank") == 3
    example_main(
        [str(model), str(tmp_path / "videos"), str(page), "--pictures", str(tmp_path / "asked <b>.png")]
    )
    assert "asked &lt;b&gt;.png" in page.read_text()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as caught:
        example_main(
            [str(model), str(tmp_path / "videos"), str(page), "--pictures", str(tmp_path / "broken.png")]
        )
    assert caught.value.code == 1


def test_other_files_are_counted_and_all_known_endings_taken(tmp_path, embedder):
    for name in ("a.wav", "b.txt", "c.TXT", "d", ".hidden.pdf"):
        soundfile.write(tmp_path / "sound.wav", make_waveform(1, 0.3), 16_000)
        (tmp_path / name).write_bytes((tmp_path / "sound.wav").read_bytes())
    for name in ("e.m4a", "f.opus", "g.aiff"):
        (tmp_path / name).write_bytes((tmp_path / "sound.wav").read_bytes())
    source = open_source(str(tmp_path), embedder.needs)
    assert source.count == 5
    assert source.others == {".txt": 2, "": 1}
    assert describe_others(source.others) == "2 .txt, 1 without an ending"


def test_half_a_sound_is_refused_or_kept(tmp_path, embedder):
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", make_waveform(number, 1.0), 16_000)
    content = (tmp_path / "1.wav").read_bytes()
    (tmp_path / "1.wav").write_bytes(content[: len(content) // 2])
    assert embed(embedder, open_source(str(tmp_path), embedder.needs), tmp_path / "s.npz") == (1, 1)
    assert "truncated" in (tmp_path / "s.npz.rejects.csv").read_text()
    kept = open_source(str(tmp_path), embedder.needs, ReadSettings("sound", keep_truncated=True))
    assert embed(embedder, kept, tmp_path / "k.npz") == (2, 0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_kills_its_decoder_costs_one_clip(tmp_path, embedder, monkeypatch, num_workers):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", make_waveform(number, 0.2 + 0.1 * number), 16_000)

    def dying(data, keep_truncated):
        sound = decode_audio(data, keep_truncated)
        if len(sound) == 4800:
            os.kill(os.getpid(), signal.SIGSEGV)
        return sound

    monkeypatch.setattr("engine.inference.sources.decode_audio", dying)
    found = embed(
        embedder,
        open_source(str(tmp_path), embedder.needs),
        tmp_path / "s.npz",
        work=Work(num_workers=num_workers),
    )
    assert found == (2, 1)
    assert (
        '1.wav,"the process that decoded it ended with SIGSEGV, twice'
        in (tmp_path / "s.npz.rejects.csv").read_text()
    )


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut"])
def test_a_part_that_lost_its_bytes_is_done_again(tmp_path, damage):
    job = PartStore(tmp_path / "vectors.npz", {"model": "m"}, count=5, part_size=2)
    alone = World(0, 1, torch.device("cpu"))
    for part in range(3):
        job.keep(part, {"id": np.array([f"clip{row}" for row in job.rows(part)])})
    assert job.left(alone) == []
    job.path(1).write_bytes(damage)
    assert job.left(alone) == [1]


def test_readers_that_hang_end_the_command(tmp_path, embedder, monkeypatch):
    soundfile.write(tmp_path / "a.wav", make_waveform(0, 0.2), 16_000)
    source = open_source(str(tmp_path), embedder.needs)
    here = os.getpid()

    def hanging(files, tickets):
        if os.getpid() != here:
            time.sleep(60)
        return [files[ticket] for ticket in tickets]

    monkeypatch.setattr("engine.inference.sources.MediaFiles.__getitems__", hanging)
    monkeypatch.setattr("engine.inference.parts.DataConfig", partial(DataConfig, stall_seconds=0.3))
    monkeypatch.setattr("datasets.loading.workers._LOOK", 0.1)
    with pytest.raises(LoaderStalledError, match="gave no batch for 0 s"):
        embed(embedder, source, tmp_path / "s.npz", work=Work(num_workers=1))


def test_two_processes_write_the_same_file(tmp_path, model, shards):
    options = ["--batch_size", "2", "--part_size", "4", "--num_workers", "0", "--device", "cpu"]
    targets = [tmp_path / f"{number}.npz" for number in (1, 2)]
    commands = [[str(model), str(shards), str(target), *options] for target in targets]
    torch.set_num_threads(1)
    main(commands[0])
    run_ranks("engine.embed.run:main", 2, arguments=commands[1])
    assert targets[0].read_bytes() == targets[1].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"1.npz", "2.npz"}
