"""What a fine-tuned model says of files: what its evaluation says, from any number of processes, interrupted or not."""

import csv
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.fusion import small_objective
from support.processes import run_ranks, run_world
from support.videos import write_video
from support.whisper import write_whisper
from torch import Tensor

from datasets.batch import AVBatch, Ticket, collate
from datasets.decode import decode_frame
from datasets.loading.config import ClipNeeds
from datasets.media.container import MediaSettings
from datasets.prepare.config import PrepareConfig
from datasets.prepare.encode import encode_jpeg
from datasets.prepare.run import prepare
from datasets.shards.manifest import ShardIndex
from engine.inference.parts import Work
from engine.inference.sources import ReadSettings, is_shards, open_files, open_shards
from engine.inference.windows import find_pieces, windows
from engine.parallel.world import World
from engine.predict.run import main, predict
from engine.predict.whisper import Transcriber
from engine.tasks.fusion_task import FusionPredictor
from engine.tasks.predictor import Predictor
from engine.tasks.preparation import preparation_of
from models.fusion.config import TextTowerConfig, TowerConfig, VisualTowerConfig

CPU = ["--device", "cpu", "--num_workers", "0"]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "videos"
    for number, seconds in enumerate([0.3, 1.0, 0.4, 0.7, 0.2]):
        write_video(folder / "ab"[number % 2] / f"{number}.mp4", seconds=seconds, tone=300 + 100 * number)
    return folder


@pytest.fixture(scope="module")
def run(videos: Path) -> Path:
    folder = videos.parent
    media = MediaSettings(num_frames=3, shorter_side=24)
    prepare(
        PrepareConfig(
            source=str(videos), out=str(folder / "shards"), folders_as_classes=True, clip_seconds=0.3, min_seconds=0.1,
            shuffle=False, jpeg_quality=70, media=media, num_workers=1,
        )
    )  # fmt: skip
    words = [
        f"output_dir={folder / 'run'}", f"data.train={folder / 'shards'}", f"data.val={folder / 'shards'}",
        "data.num_workers=0", "model.name=cav_mae_tiny", "model.image_size=32", "model.audio_length=32",
        "model.num_mel_bins=32", "model.embed_dim=24", "model.num_heads=2", "model.modality_depth=1",
        "objective.loss=cross_entropy", "optimizer.lr=0.01", "train.steps=4", "train.log_interval=1",
        "train.parallel.global_batch_size=4", "train.parallel.precision=fp32", "evaluation.bootstrap=0",
        "evaluation.pictures=false", "evaluation.batch_size=3",
    ]  # fmt: skip
    assert run_ranks("support.labelled_runs:tune", 1, runs=[words]) == [[True]]
    return folder / "run"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluated(run: Path) -> tuple[list[str], np.ndarray]:
    stored = np.load(run / "evaluation" / "last" / "predictions.npz")
    return stored["ids"].tolist(), stored["scores_audio_visual_ensemble"]


def scores_of(rows: list[dict]) -> np.ndarray:
    return np.array([list(row["classes"].values()) for row in rows], np.float32)


def test_of_shards_it_says_what_the_evaluation_says(run: Path, tmp_path: Path, capsys):
    main([str(run), str(run.parent / "shards"), str(tmp_path / "out.jsonl"), *CPU])
    rows = rows_of(tmp_path / "out.jsonl")
    ids, scores = evaluated(run)
    assert [row["id"] for row in rows] == ids
    assert set(rows[0]) == {"id", "start", "end", "classes"}
    np.testing.assert_array_equal(scores_of(rows), scores)
    assert "8 windows predicted, 0 could not be read" in capsys.readouterr().out


def test_of_the_videos_themselves_too_and_when_the_shards_are_gone(run: Path, videos: Path, tmp_path: Path):
    shards, away = run.parent / "shards", run.parent / "away"
    shards.rename(away)
    (videos / "z.mp4").write_bytes(b"no video")
    (videos / "notes.txt").write_text("of no interest")
    targets = [tmp_path / f"out{suffix}" for suffix in (".jsonl", ".csv", ".parquet")]
    if importlib.util.find_spec("pyarrow") is None:
        targets.pop()
    for target in targets:
        main([str(run), str(videos), str(target), *CPU])
    away.rename(shards)
    (videos / "z.mp4").unlink()
    rows = rows_of(targets[0])
    ids, scores = evaluated(run)
    assert [(row["id"], row["start"]) for row in rows] == [
        ("a/0.mp4", 0.0), ("a/2.mp4", 0.0), ("a/4.mp4", 0.0), ("b/1.mp4", 0.0), ("b/1.mp4", 0.3), ("b/1.mp4", 0.6),
        ("b/3.mp4", 0.0), ("b/3.mp4", 0.3),
    ]  # fmt: skip
    assert len(ids) == len(rows)
    np.testing.assert_array_equal(scores_of(rows), scores)
    assert [row["end"] for row in rows if row["id"] == "b/1.mp4"] == [0.3, 0.6, 0.9]
    with targets[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["id", "start", "end", "classes:a", "classes:b"]
    np.testing.assert_array_equal([[row["classes:a"], row["classes:b"]] for row in table], scores.astype(str))
    if len(targets) == 3:
        import pyarrow.parquet as pq

        columns = pq.read_table(targets[2]).to_pydict()
        np.testing.assert_array_equal(np.stack([columns["classes:a"], columns["classes:b"]], 1), scores)
    rejects = (tmp_path / "out.csv.rejects.csv").read_text().splitlines()
    assert len(rejects) == 2
    assert rejects[1].startswith('z.mp4,"undecodable')


def test_two_processes_write_the_same_file(run: Path, videos: Path, tmp_path: Path):
    options = [*CPU, "--part_size", "3", "--hop", "0.1"]
    command = ["engine.predict", str(run), str(videos)]
    main([*command[1:], str(tmp_path / "1.jsonl"), *options])
    ranks = run_world("-m", *command, str(tmp_path / "2.jsonl"), *options, world_size=2)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert sum(rank.stdout.count("windows predicted, 0 could not be read") for rank in ranks) == 1
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert [row["start"] for row in rows_of(tmp_path / "1.jsonl") if row["id"] == "a/2.mp4"] == [
        0.0,
        0.1,
        0.2,
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"1.jsonl", "2.jsonl"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{videos}", "{videos}", "{out}.jsonl"], "is no run of main_finetune.py"),
        (["{run}", "{videos}", "{out}.xlsx"], "must end in .jsonl, .csv or .parquet"),
        (["{run}", "{run}/nowhere", "{out}.csv"], "there is no such folder"),
        (["{run}", "{videos}/../shards", "{out}.csv", "--hop", "1"], "--hop is of files"),
        (["{run}", "{videos}", "{out}.csv", "--whisper", "{run}"], "this model reads no text"),
        (["{run}", "{videos}", "{out}.csv", "--window", "0"], "0 is no number of seconds above 0"),
        (["{run}", "{videos}", "{out}.csv", "--window", "2"], "--window 2 is longer than the 0.335 s"),
    ],
)
def test_mistakes_are_errors(run: Path, videos: Path, tmp_path: Path, capsys, words: list[str], message: str):
    given = [word.format(run=run, videos=videos, out=tmp_path / "out") for word in words]
    with pytest.raises(SystemExit) as caught:
        main([*given, *CPU])
    assert caught.value.code in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Reader(Predictor):
    """Says how long a clip's text is, and stops after some batches."""

    def __init__(self, stop_after: int = 99) -> None:
        super().__init__()
        self.heads = {"length": ["letters", "none"], "other": ["one"]}
        self.needs = ClipNeeds(held_out_frames=None, num_samples=8000, text=True)
        self.left = stop_after

    def predict(self, batch: AVBatch) -> dict[str, Tensor]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        assert batch.text is not None
        letters = torch.tensor([[len(text or ""), 0.0] for text in batch.text])
        return {"length": letters, "other": torch.full((len(batch), 1), 1 / 3)}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    for name, seconds in {"a": 0.6, "b": 1.5, "c": 0.4}.items():
        write_video(folder / f"{name}.mp4", seconds=seconds)
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:00,550\none two\n")
    cues = [
        "00:00.000 --> 00:00.400\nfirst",
        "00:00.400 --> 00:01.200\nsecond",
        "00:01.200 --> 00:01.400\nthird",
    ]
    (folder / "b.vtt").write_text("\n\n".join(["WEBVTT", *cues]))
    return folder


def texts(location: Path, target: Path, **options) -> list[tuple]:
    reader = Reader(options.pop("stop_after", 99))
    settings = ReadSettings(keep_truncated=options.pop("keep_truncated", False))
    listing, pieces = find_pieces(location, reader.needs, None, 0.5, options.pop("hop", 0.5), ALONE)
    source = open_files(listing, pieces, reader.needs, settings)
    transcriber = options.pop("transcriber", None)
    predict(reader, source, target, transcriber=transcriber, work=Work(batch_size=1, part_size=2))
    return [(row["id"], row["start"], row["end"], row["text"]) for row in rows_of(target)]


def test_text_comes_from_subtitles(spoken: Path, tmp_path: Path):
    assert texts(spoken, tmp_path / "out.jsonl") == [
        ("a.mp4", 0.0, 0.5, "one two"),  # whole: one window and a bit; the model hears half a second
        ("b.mp4", 0.0, 0.5, "first second"),
        ("b.mp4", 0.5, 1.0, "second"),
        ("b.mp4", 1.0, 1.5, "second third"),
        ("c.mp4", 0.0, 0.4, None),
    ]
    assert [row["length"]["letters"] for row in rows_of(tmp_path / "out.jsonl")] == [
        7.0,
        12.0,
        6.0,
        12.0,
        0.0,
    ]
    assert rows_of(tmp_path / "out.jsonl")[0]["other"] == {"one": 0.33333334}


def test_text_comes_from_a_list(spoken: Path, tmp_path: Path):
    rows = ["path,start,end,text", 'b.mp4,,,"all, of it"', "b.mp4,0.2,0.6,", "a.mp4,,,", "gone.mp4,,,"]
    (spoken / "list.csv").write_text("\n".join(rows) + "\n")
    found = texts(spoken / "list.csv", tmp_path / "out.jsonl")
    (spoken / "list.csv").unlink()
    assert found == [
        ("b.mp4", 0.0, 0.5, "all, of it"),
        ("b.mp4", 0.2, 0.6, "first second"),
        ("a.mp4", 0.0, 0.5, "one two"),
    ]
    assert "gone.mp4,file_missing" in (tmp_path / "out.jsonl.rejects.csv").read_text()


def test_a_row_with_text_is_judged_as_shards_have_it(tmp_path: Path):
    """The same rows through ``datasets.prepare --partial true`` and from their files: the same words."""
    write_video(tmp_path / "whole.mp4", seconds=0.6)
    write_video(tmp_path / "mute.mp4", seconds=0.6, sound_seconds=0.0)
    write_video(tmp_path / "still.mp4", seconds=0.6, level=0.0)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:400])
    names = ("whole", "mute", "still", "broken", "gone")
    rows = [f"{name}.mp4,a word" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["path,text", *rows, "lost.mp4,"]) + "\n")
    made = {"num_frames": 3, "shorter_side": 24, "jpeg_quality": 90}
    prepare(
        PrepareConfig(
            source=str(tmp_path / "list.csv"), out=str(tmp_path / "shards"), min_seconds=0.1, shuffle=False,
            media=MediaSettings(num_frames=3, shorter_side=24), partial=True, num_workers=1,
        )
    )  # fmt: skip
    assert preparation_of(ShardIndex.load(tmp_path / "shards")).partial
    predictor = small_predictor("audio", "visual", "text")
    shards = fused(predictor, tmp_path / "shards", tmp_path / "shards.jsonl")
    files = fused(predictor, tmp_path / "list.csv", tmp_path / "files.jsonl", partial=True, **made)
    assert [row["emotion"] for row in files] == [row["emotion"] for row in shards]
    assert [row["id"] for row in files] == [f"{name}.mp4" for name in names]
    rejects = [line.split(",")[0] for line in (tmp_path / "files.jsonl.rejects.csv").read_text().splitlines()]
    assert rejects[1:] == ["lost.mp4"]  # of which no text is known
    alone = fused(predictor, tmp_path / "list.csv", tmp_path / "alone.jsonl", **made)
    assert [row["id"] for row in alone] == ["whole.mp4", "mute.mp4", "still.mp4"]


def test_whisper_writes_down_what_nobody_else_did(spoken: Path, tmp_path: Path, capsys):
    pytest.importorskip("transformers")
    folder = write_whisper(tmp_path / "whisper")
    found = texts(spoken, tmp_path / "out.jsonl", transcriber=Transcriber(folder))
    assert [row[3] for row in found[:4]] == ["one two", "first second", "second", "second third"]
    assert re.fullmatch("[a-z ]{3,}", found[4][3])
    again = texts(spoken, tmp_path / "again.jsonl", transcriber=Transcriber(folder), hop=0.4)
    assert again[-1] == found[4]
    for name in ("vocab.json", "tokenizer.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="lacks the tokenizer"):
        Transcriber(folder)
    with pytest.raises(ValueError, match="no folder of a Whisper"):
        Transcriber(tmp_path)


def test_interrupted_it_writes_the_same(spoken: Path, tmp_path: Path):
    whole = texts(spoken, tmp_path / "whole.jsonl", hop=0.25)
    with pytest.raises(KeyboardInterrupt):
        texts(spoken, tmp_path / "out.jsonl", hop=0.25, stop_after=3)
    assert len(list((tmp_path / "out.jsonl.parts").glob("*.npz"))) == 1
    with pytest.raises(ValueError, match="another model, source or settings"):
        texts(spoken, tmp_path / "out.jsonl", hop=0.5)
    assert texts(spoken, tmp_path / "out.jsonl", hop=0.25) == whole
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def small_predictor(*modalities: str) -> FusionPredictor:
    left_out = {"audio": TowerConfig(), "visual": VisualTowerConfig(), "text": TextTowerConfig()}
    default = {name: tower for name, tower in left_out.items() if name not in modalities}
    return FusionPredictor(small_objective({"modalities": modalities, "fusion": "late", **default}))


def fused(predictor: Predictor, location: Path, target: Path, **settings) -> list[dict]:
    if is_shards(str(location)):
        source = open_shards(str(location), predictor.needs, ReadSettings())
    else:
        listing, pieces = find_pieces(location, predictor.needs, None, 0.5, 0.5, ALONE)
        assert not listing.others
        source = open_files(listing, pieces, predictor.needs, ReadSettings(**settings))
    predict(predictor, source, target, work=Work(batch_size=1))
    return rows_of(target)


def test_fusion_takes_of_a_file_what_there_is(tmp_path: Path):
    folders = {name: tmp_path / name for name in ("video", "sound", "picture")}
    for folder in folders.values():
        folder.mkdir()
    write_video(folders["video"] / "a.mp4", seconds=0.3)
    for folder in folders.values():
        (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:00,250\nthe film\n")
    rng = np.random.default_rng(0)
    wave = (9000 * rng.standard_normal((4800, 2))).astype(np.int16)
    soundfile.write(folders["sound"] / "a.wav", wave, 16000)
    picture = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    (folders["picture"] / "a.jpg").write_bytes(encode_jpeg(picture, 90))
    (tmp_path / "list.csv").write_text(f"path,text\n{folders['video'] / 'a.mp4'},the film\n")
    media = MediaSettings(num_frames=3, shorter_side=24)
    prepare(
        PrepareConfig(
            source=str(tmp_path / "list.csv"), out=str(tmp_path / "shards"), min_seconds=0.1, media=media,
            num_workers=1,
        )
    )  # fmt: skip
    predictor = small_predictor("audio", "visual", "text")
    shards = fused(predictor, tmp_path / "shards", tmp_path / "shards.jsonl")
    made = {"num_frames": 3, "shorter_side": 24, "jpeg_quality": 90}
    (video,) = fused(predictor, folders["video"], tmp_path / "video.jsonl", **made)
    assert [video[name] for name in ("emotion", "text")] == [shards[0][name] for name in ("emotion", "text")]

    zero = torch.zeros(1, dtype=torch.int64)
    batch = AVBatch(
        ["a"], zero, zero, waveform=torch.from_numpy(wave[None, :, 0]), num_samples=torch.tensor([4800]),
        frames=torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), num_stored=torch.tensor([0]), text=["the film"],
    )  # fmt: skip
    expected = predictor.predict(batch)["emotion"][0]
    (sound,) = fused(predictor, folders["sound"], tmp_path / "sound.jsonl", first_channel_only=True)
    torch.testing.assert_close(torch.tensor(list(sound["emotion"].values())), expected, atol=1e-4, rtol=0)
    seen = decode_frame(bytearray((folders["picture"] / "a.jpg").read_bytes()), 32)
    shown = replace(
        batch, num_samples=torch.tensor([0]), frames=seen[None, None], num_stored=torch.tensor([1])
    )
    (row,) = fused(predictor, folders["picture"], tmp_path / "picture.jsonl")
    found = torch.tensor(list(row["emotion"].values()))
    torch.testing.assert_close(found, predictor.predict(shown)["emotion"][0])
    reader = small_predictor("text")
    said = [
        fused(reader, folder, tmp_path / f"{name} text.jsonl")[0]["emotion"]
        for name, folder in folders.items()
    ]
    assert said == said[:1] * 3
    torch.testing.assert_close(torch.tensor(list(said[0].values())), reader.predict(batch)["emotion"][0])


def test_a_video_without_sound_is_judged_by_its_frames(tmp_path: Path):
    for name, seconds in {"heard": 1.2, "silent": 0.0}.items():
        write_video(tmp_path / f"{name}.mp4", seconds=1.2, sound_seconds=seconds)
    seen = fused(small_predictor("visual"), tmp_path, tmp_path / "seen.jsonl")
    places = [(name, start) for name in ("heard.mp4", "silent.mp4") for start in (0.0, 0.5)]
    assert [(row["id"], row["start"]) for row in seen] == places
    assert [row["emotion"] for row in seen[:2]] == [row["emotion"] for row in seen[2:]]

    whole = (tmp_path / "silent.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    both = small_predictor("audio", "visual")
    listing, pieces = find_pieces(tmp_path, both.needs, None, 0.5, 0.5, ALONE)
    source = open_files(listing, pieces, both.needs, ReadSettings())
    assert predict(both, source, tmp_path / "both.jsonl", work=Work(batch_size=1)) == (4, 1)
    assert "truncated" in (tmp_path / "both.jsonl.rejects.csv").read_text()
    rows = {(row["id"], row["start"]): row["emotion"] for row in rows_of(tmp_path / "both.jsonl")}
    for row, (name, start) in enumerate((piece.name, piece.start) for piece in pieces):
        if name == "heard.mp4":
            clip = source.clips[Ticket(row, 0)]
            batch = collate([clip], num_samples=source.num_samples, num_classes=0)
            unheard = both.predict(replace(batch, num_samples=torch.tensor([0])))["emotion"][0]
            said = [torch.tensor(list(rows[video, start].values())) for video in ("silent.mp4", name)]
            assert torch.equal(said[0], unheard)
            assert not torch.equal(said[1], unheard)


def test_a_clip_with_nothing_for_the_model_and_a_file_of_no_kind_are_rejects(spoken: Path, tmp_path: Path):
    (spoken / "list.csv").write_text("path\na.mp4\nc.mp4\nnotes.docx\n")
    reader = small_predictor("text")
    listing, pieces = find_pieces(spoken / "list.csv", reader.needs, None, 0.7, 0.7, ALONE)
    (spoken / "list.csv").unlink()
    assert not listing.others
    source = open_files(listing, pieces, reader.needs, ReadSettings())
    assert predict(reader, source, tmp_path / "out.jsonl", work=Work(batch_size=2)) == (1, 2)
    assert [row["id"] for row in rows_of(tmp_path / "out.jsonl")] == ["a.mp4"]
    rejects = list(csv.reader((tmp_path / "out.jsonl.rejects.csv").read_text().splitlines()))
    assert dict(rejects[1:]) == {
        "c.mp4": "nothing that the model takes",
        "notes.docx": "unknown_ending: it is no video by its name",
    }


def test_the_silence_of_a_subtitled_film_stays_silent(spoken: Path, tmp_path: Path):
    class Talker(torch.nn.Module):
        def forward(self, batch: AVBatch) -> AVBatch:
            return replace(batch, text=["heard" if text is None else text for text in batch.text or []])

    (spoken / "b.srt").write_text("1\n00:00:00,000 --> 00:00:00,400\nfirst\n")  # before b.vtt
    found = texts(spoken, tmp_path / "out.jsonl", transcriber=Talker())
    (spoken / "b.srt").unlink()
    assert [row[3] for row in found] == ["one two", "first", None, None, "heard"]


@pytest.mark.parametrize(
    ("length", "hop", "starts", "end"),
    [
        (None, 10, [0], None),
        (3.0, 10, [0], None),
        (14.9, 10, [0], 10),
        (15.0, 10, [0, 10], 20),
        (24.9, 10, [0, 10], 20),
        (25.0, 10, [0, 10, 20], 30),
        (20.0, 5, [0, 5, 10, 15], 25),
        (30.0, 20, [0, 20], 30),
    ],
)
def test_windows(length: float | None, hop: float, starts: list[float], end: float | None):
    found = windows(length, 10, hop)
    assert [start for start, _ in found] == starts
    assert found[-1][1] == end
