"""The generated world: the same for everyone, and what it says of itself is what is in the clips."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import datasets.synthetic.picture
import datasets.synthetic.world
from datasets.media.container import MediaSettings, read_media
from datasets.synthetic.masks import clip_of, object_masks, read_world
from datasets.synthetic.picture import render_frames
from datasets.synthetic.scene import SHAPES, SyntheticConfig, describe, make_scene
from datasets.synthetic.sound import render_sound
from datasets.synthetic.world import generate, main, write_clip

SMALL = SyntheticConfig(train=9, val=3, test=3, seed=5, seconds=1.0, size=64)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("worlds") / "small"
    generate(out, SMALL)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout(world: Path):
    with open(world / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 9 + ["val"] * 3 + ["test"] * 3
    for row in rows:
        split, label, _ = row["path"].split("/")
        assert (split, label) == (row["split"], row["label"])
        assert (world / row["path"]).is_file()
    assert {row["label"] for row in rows if row["split"] == "train"} == set(SHAPES)
    truth = [json.loads(line) for line in (world / "truth-val.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in truth] == [row["path"] for row in rows if row["split"] == "val"]


def test_clips_are_what_was_rendered(world: Path):
    for entry, index in zip((describe(SMALL, "train", i) for i in range(9)), range(9), strict=True):
        clip = read_media(world / entry["path"], settings=MediaSettings(num_frames=10))
        assert clip.frame_times == pytest.approx(np.arange(10) / 10)
        frames = render_frames(SMALL, "train", index).astype(int)
        grey = [
            np.mean(pictures, axis=-1) for pictures in (frames, clip.frames)
        ]  # MP4 halves colour's resolution
        assert np.abs(grey[0] - grey[1]).mean() < 5
        sound = render_sound(SMALL, "train", index)
        assert len(clip.waveform) == len(sound) == 16000
        assert np.corrcoef(clip.waveform, sound)[0, 1] > 0.9  # in step, to the sample


def test_interrupted_and_parallel_runs_end_alike(world: Path, tmp_path: Path, monkeypatch):
    out, wanted, plain = tmp_path / "w", contents(world), write_clip

    def interrupted(path, frames, fps, sound):
        if "test" in path.name:
            path.with_suffix(".mp4.7.partial").write_bytes(b"half a clip")
            raise KeyboardInterrupt
        plain(path, frames, fps, sound)

    monkeypatch.setattr(datasets.synthetic.world, "write_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(out, SMALL)
    assert not (out / "labels.csv").exists()
    monkeypatch.undo()
    before = (out / "train").stat().st_mtime_ns
    generate(out, SMALL, num_workers=2)
    assert contents(out) == wanted
    assert (out / "train").stat().st_mtime_ns == before


def test_another_world_is_not_mixed_in(world: Path):
    with pytest.raises(ValueError, match="other settings \\(seed, difficulty\\)"):
        generate(world, SyntheticConfig(train=9, val=3, test=3, seed=6, seconds=1.0, size=64, difficulty=0.5))


def test_splits_seeds_and_indices_differ():
    keys = [("train", 0, 0), ("val", 0, 0), ("test", 0, 0), ("train", 8, 0), ("train", 0, 1)]
    radii = {make_scene(SyntheticConfig(seed=seed), split, index)[-1].radius for split, index, seed in keys}
    assert len(radii) == len(keys)
    few = render_sound(SyntheticConfig(train=1), "train", 0)  # a clip does not depend on how many there are
    np.testing.assert_array_equal(few, render_sound(SyntheticConfig(train=900), "train", 0))


def test_the_box_holds_the_glowing_object_in_every_frame():
    config = SyntheticConfig(difficulty=0.0)
    for index in range(8):
        frames = render_frames(config, "val", index).astype(int)
        main = describe(config, "val", index)["objects"][0]
        assert main["shape"] == SHAPES[index]
        vivid = frames.max(axis=-1) - frames.min(axis=-1) > 150  # distractors are grey here
        for picture, (left, top, right, bottom) in zip(vivid, main["boxes"], strict=True):
            y, x = np.nonzero(picture)
            assert left - 2 <= x.min() < x.max() <= right + 1
            assert top - 2 <= y.min() < y.max() <= bottom + 1
            assert x.max() - x.min() > 0.75 * (right - left)


def spectrum(sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(np.fft.rfft(sound)), np.fft.rfftfreq(len(sound), 1 / 16000)


def test_masks_are_the_pixels_that_objects_were_drawn_on(monkeypatch):
    """Found by drawing the same scene once more with the objects in question invisible."""
    for index in range(8):
        masks = object_masks(SMALL, "test", index)
        scene = make_scene(SMALL, "test", index)
        whole = render_frames(SMALL, "test", index)

        def drawn_on(loud: bool, index=index, scene=scene, whole=whole) -> np.ndarray:
            kept = [thing for thing in scene if (thing.loudness > 0) != loud]
            monkeypatch.setattr(datasets.synthetic.picture, "make_scene", lambda *_: kept)
            changed = np.abs(whole.astype(int) - render_frames(SMALL, "test", index)).max(-1)
            monkeypatch.undo()
            return changed > 0

        assert (masks.sounding <= masks.sounding_box).all()
        assert not (masks.sounding & masks.silent).any()
        silent = drawn_on(False)
        assert (masks.silent & ~silent).mean() < 1e-3
        # An edge's pixels may be less than half covered.
        assert (silent & ~masks.silent & ~masks.sounding).sum() < 0.3 * silent.sum()
        assert (masks.sounding & ~drawn_on(True)).mean() < 1e-3
        assert masks.sounding.any((1, 2)).all()


def test_a_world_is_read_back_from_its_folder(world: Path, tmp_path: Path):
    assert read_world(world) == SMALL
    assert clip_of("test-000012") == ("test", 12)
    for wrong in ("test", "other-3", "test-x"):
        with pytest.raises(ValueError, match="no id of a generated clip"):
            clip_of(wrong)
    with pytest.raises(ValueError, match="no generated world"):
        read_world(tmp_path)
    (tmp_path / "world.json").write_text('{"speed": 3}')
    with pytest.raises(ValueError, match="does not hold the settings"):
        read_world(tmp_path)


def test_size_is_heard_as_pitch_and_hue_as_the_band_of_hiss():
    config = SyntheticConfig(difficulty=0.0)
    for index in range(0, 64, 8):  # discs, whose tone is nearly pure
        main = describe(config, "train", index)["objects"][0]
        level, hertz = spectrum(render_sound(config, "train", index))
        assert hertz[level.argmax()] == pytest.approx(main["pitch_hz"], rel=0.02)
        hiss = hertz > 1.3 * 1400
        center = np.sum(hertz[hiss] * level[hiss] ** 2) / np.sum(level[hiss] ** 2)
        assert center == pytest.approx(main["hiss_hz"], rel=0.15)
    pairs = [describe(config, "train", i)["objects"][0] for i in range(40)]
    order = np.argsort([o["radius"] for o in pairs])
    assert (np.diff([pairs[i]["pitch_hz"] for i in order]) < 2).all()  # radii are rounded


def test_four_shapes_share_any_colour():
    hues = {shape: [] for shape in SHAPES}
    for index in range(800):
        main = make_scene(SyntheticConfig(), "train", index)[-1]
        hues[main.shape].append(main.hue)
    seen = [np.histogram(values, bins=16, range=(0, 1))[0] > 0 for values in hues.values()]
    counts = np.sum(seen, axis=0)
    assert 4 <= counts.min() <= counts.max() <= 5  # a bin is half a shape's step wide


def test_impacts_are_heard_and_seen():
    config = SyntheticConfig(difficulty=0.0, fps=50)
    rises = []
    for index in (0, 1, 2, 8, 9, 10):
        main = make_scene(config, "train", index)[-1]
        sound = render_sound(config, "train", index)
        centers = main.centers(np.arange(150) / 50)
        for onset in main.impacts(3.0):
            if not 0.1 < onset < 2.85 or np.any(
                (main.impacts(3.0) < onset) & (main.impacts(3.0) > onset - 0.4)
            ):
                continue
            at = round(onset * 16000)
            rises.append(np.std(sound[at + 80 : at + 1280]) / np.std(sound[at - 1280 : at - 80]))
            frame = round(onset * 50)
            wall = np.minimum(centers[frame], config.size - centers[frame]) - main.radius
            assert wall.min() < config.size * 0.9 / 50
    assert len(rises) > 5
    assert min(rises) > 1.5


def test_only_sounding_objects_are_heard():
    config = SyntheticConfig(difficulty=1.0)
    scenes = [make_scene(config, "train", i) for i in range(100)]
    assert all(scene[-1].loudness == 1 for scene in scenes)
    sounding = np.array([sum(thing.loudness > 0 for thing in scene) for scene in scenes])
    assert 20 < np.sum(sounding == 2) < 80
    assert max(len(scene) for scene in scenes) >= 6
    assert all(len(make_scene(SyntheticConfig(difficulty=0.0), "train", i)) == 2 for i in range(20))


def test_the_command_line(tmp_path: Path, capsys):
    arguments = ["--train=2", "--val=1", "--test=0", "--seconds=0.5", "--size=32", "--difficulty=0.8"]
    main([str(tmp_path / "w"), *arguments])
    assert len(list((tmp_path / "w").rglob("*.mp4"))) == 3
    with pytest.raises(SystemExit):
        main([str(tmp_path / "w"), *arguments, "--difficulty=2"])
    assert "difficulty must be from 0 to 1" in capsys.readouterr().err
