"""The world in which words, timbre and shape are independent: each is in its own modality and in no other."""

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest

import datasets.synthetic.scene
from datasets.batch import Clip, Ticket
from datasets.loading.reader import ClipReader
from datasets.prepare.config import PrepareConfig
from datasets.prepare.run import prepare
from datasets.shards.manifest import label_tasks
from datasets.synthetic.picture import render_frames
from datasets.synthetic.scene import SyntheticConfig, words_of
from datasets.synthetic.sound import render_sound
from datasets.synthetic.words import TASKS, Bits, bits_of, labels_of
from datasets.synthetic.world import generate, main

SMALL = SyntheticConfig(train=8, val=0, test=3, seed=3, seconds=0.6, size=48, difficulty=0.0, words=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("worlds") / "words"
    generate(out, SMALL)
    return out


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_bit_is_in_its_own_modality_and_in_no_other(monkeypatch, difficulty: float, changed: int):
    config = SyntheticConfig(seconds=0.5, size=48, difficulty=difficulty, words=True)

    def render(index: int) -> list[bytes]:
        words = " ".join(words_of(config, "test", index)).encode()
        sound, frames = render_sound(config, "test", index), render_frames(config, "test", index)
        return [words, sound.tobytes(), frames.tobytes()]

    plain = [render(index) for index in range(4)]
    monkeypatch.setattr(
        datasets.synthetic.scene,
        "bits_of",
        lambda index: Bits(*(bit ^ (place == changed) for place, bit in enumerate(bits_of(index)))),
    )
    for index, before in enumerate(plain):
        differs = [a != b for a, b in zip(before, render(index), strict=True)]
        assert differs == [place == changed for place in range(3)]


def best_accuracy(labels: list[str], seen: list[tuple[int, ...]]) -> float:
    """Of whoever knows the labels' joint distribution with what is seen, and nothing else."""
    table: dict[tuple[int, ...], Counter[str]] = {}
    for label, what in zip(labels, seen, strict=True):
        table.setdefault(what, Counter())[label] += 1
    return sum(max(counts.values()) for counts in table.values()) / len(labels)


def test_what_each_subset_of_the_modalities_can_reach(world: Path):
    with (world / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    bits = [bits_of(index) for index in range(len(rows))]
    for subset in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
        seen = [tuple(clip[place] for place in subset) for clip in bits]
        reached = {task: best_accuracy([row[f"label.{task}"] for row in rows], seen) for task in TASKS}
        assert reached == {
            "emotion": 2 ** len(subset) / 8,
            "sentiment": 1.0 if {0, 1} <= set(subset) else 0.5,
        }
    # A weighted vote of the modalities knows the marginals alone, and all of sentiment's are even.
    assert {labels_of(i)["sentiment"] for i in range(8) if bits_of(i).words} == {"negative", "positive"}


def test_from_videos_to_shards_with_text_and_tasks(world: Path, tmp_path: Path):
    prepare(
        PrepareConfig(source=str(world / "labels.csv"), out=str(tmp_path), min_seconds=0.1, num_workers=1)
    )
    reader = ClipReader(tmp_path / "test", image_size=32, text=True, substitutes=False)
    assert len(reader) == 3
    assert {task: len(places) for task, places in label_tasks(reader.index.labels).items()} == {
        "emotion": 8,
        "sentiment": 2,
    }
    for row in range(3):
        clip = reader[Ticket(row, 0)]
        assert isinstance(clip, Clip)
        index = int(clip.id.split("-")[-1])
        assert clip.text == " ".join(words_of(SMALL, "test", index))
        assert clip.waveform is not None
        assert abs(len(clip.waveform) - 9600) < 100
        named = [reader.index.labels[place].name for place in clip.labels]
        assert named == [f"{task}:{name}" for task, name in labels_of(index).items()]
        said = (world / f"test/test-{index:06d}.srt").read_text().split("\n")
        assert said[1] == "00:00:00,000 --> 00:00:00,300"
        assert " ".join((said[2], said[6])) == clip.text


def test_the_command_line_and_the_other_worlds(tmp_path: Path):
    arguments = ["--train=1", "--val=0", "--test=0", "--seconds=0.5", "--size=32"]
    main([str(tmp_path / "words"), "--words", *arguments])
    main([str(tmp_path / "plain"), *arguments])
    assert '"words": true' in (tmp_path / "words" / "world.json").read_text()
    assert "words" not in (tmp_path / "plain" / "world.json").read_text()
    assert (
        tmp_path / "plain" / "labels.csv"
    ).read_text() == "path,label,split\ntrain/disc/train-000000.mp4,disc,train\n"
    with pytest.raises(ValueError, match=r"other settings"):
        generate(
            tmp_path / "plain", SyntheticConfig(train=1, val=0, test=0, seconds=0.5, size=32, words=True)
        )
