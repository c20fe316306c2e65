"""Films of heat and their measure on a generated world, with real files."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.dense import CONFIG, FBANK, small_dense
from support.processes import run_program
from support.videos import write_video

from datasets.synthetic.scene import SyntheticConfig
from datasets.synthetic.world import generate
from engine.ground import measure as measuring
from engine.ground.film import make_film, read_parts, waveform_strips
from engine.ground.grounder import Grounder
from engine.ground.prompted import measure_prompted, read_prompted
from models.dense.config import HeadConfig
from models.weights.description import Description, save_described


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The weights of a very small model, as an export holds them."""
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    config = replace(CONFIG, audio_head=HeadConfig())  # eight moments of 82 ms
    save_described(path, small_dense(config).state_dict(), Description(config, FBANK))
    return path


def test_heat_of_a_frame_is_that_of_its_time_and_none_in_silence(run):
    grounder = Grounder.open(run)
    generator = torch.Generator().manual_seed(0)
    samples = int(grounder.seconds * 16000)
    waveform = torch.randint(-9000, 9000, (samples,), generator=generator, dtype=torch.int16)
    waveform[samples // 2 :] = 0
    frames = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    times = torch.tensor([0.05, 0.2, 0.5, 0.6])
    heat = grounder.heat_at(waveform, frames, times)
    assert heat.shape == (4, 4, 4)
    assert heat[:2].abs().amax() > 0
    assert (heat[2:] == 0).all()
    volume, moments, _ = grounder.volume(waveform, frames)
    nearest = [(moments - t).abs().argmin() for t in (0.05, 0.2)]
    expected = volume[0][(moments - 0.05).abs() <= 0.1].mean(0)
    torch.testing.assert_close(heat[0], expected)
    assert nearest[0] != nearest[1]


def test_a_film_has_the_sound_and_every_moment(run, tmp_path):
    video = write_video(tmp_path / "in.mp4", seconds=1.5, size=(80, 48))
    grounder = Grounder.open(run)  # hears 0.655 s at a time: three parts
    parts = list(read_parts(video, grounder.seconds, 10, 256))
    assert len(parts) == 3
    top = make_film(grounder, video, tmp_path / "out.mp4")
    assert top > 0
    with av.open(str(tmp_path / "out.mp4")) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        film.seek(0)
        sound = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    assert len(pictures) == pytest.approx(15, abs=2)
    assert pictures[0].shape == (256 + 64, 512, 3)
    assert len(sound) == pytest.approx(1.5 * 16000, abs=2048)
    original = np.concatenate([part.waveform.numpy() for part in parts]) / 32768
    count = min(len(sound), len(original))
    assert np.corrcoef(sound[:count], original[:count])[0, 1] > 0.9
    assert not list(tmp_path.glob("*.part"))


def test_the_time_moves_along_the_waveform():
    strips = waveform_strips(torch.ones(16000, dtype=torch.int16), torch.tensor([0.0, 0.5, 0.99]), 100)
    yellow = (strips == torch.tensor([255, 200, 0])[:, None, None]).all(1).any(1)
    assert [row.nonzero()[0].item() for row in yellow] == [0, 50, 98]


def test_the_command_line(run, tmp_path):
    write_video(tmp_path / "in.mp4", seconds=0.6)
    (tmp_path / "broken.mp4").write_bytes(b"no video")

    def ground(*arguments: object) -> subprocess.CompletedProcess:
        return run_program("-m", "engine.ground", *map(str, arguments))

    made = ground(run, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out.mp4").is_file()
    assert "full heat is a similarity of" in made.stdout
    wrong = ground(run, tmp_path / "broken.mp4", tmp_path / "other.mp4")
    assert wrong.returncode == 1
    assert wrong.stderr.count("\n") == 1
    assert "broken.mp4 can't be read" in wrong.stderr


def test_models_without_heat_are_refused(tmp_path):
    from models import build_model, create_config

    config = create_config(
        "cav_mae_tiny", image_size=32, audio_length=32, num_mel_bins=32, embed_dim=24, num_heads=2,
        modality_depth=1, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    save_described(tmp_path / "model.safetensors", build_model(config).state_dict(), Description(config))
    with pytest.raises(
        ValueError, match=r"holds a cav_mae_tiny: heat is that of a run with objective\.kind dense"
    ):
        Grounder.open(tmp_path / "model.safetensors")


def test_measured_against_the_truth_of_a_world(run, tmp_path, capsys):
    world = tmp_path / "world"
    generate(world, SyntheticConfig(train=1, val=0, test=4, seconds=0.6, size=48))
    measuring.main([str(run), str(world), "--json", str(tmp_path / "scores.json")])
    assert "4 clips of test" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["trained"]["pointing_chance"] == scores["untrained"]["pointing_chance"]
    assert 0 < scores["trained"]["pointing_chance"] < scores["trained"]["pointing_box_chance"] < 1

    class Knowing(Grounder):
        """Heat where the truth is, as loud as it is."""

        def volume(self, waveform, frames):
            index = next(i for i, x in enumerate(clips.waveforms) if torch.equal(x, waveform))
            moments = (torch.arange(8) + 0.5) * self.seconds / 8
            loudness = torch.from_numpy(clips.loudness[index])[(moments * 1000).long().clamp_max(599)]
            shown = clips.sounding[index].float() - 0.5
            return (shown * loudness[:, None, None].float())[None], moments, torch.ones(8)

    grounder = Grounder.open(run)
    clips = measuring.read_clips(world, "test", grounder.image_size)
    knowing = measuring.measure(Knowing(grounder.model, FBANK), clips)
    for name in ("pointing", "pointing_box", "ap", "best_iou", "iou_half", "ciou", "heat_share"):
        assert knowing[name] == pytest.approx(1, abs=1e-3), name
    assert knowing["pointing_silent"] == knowing["heat_share_silent"] == 0
    varying = [x[:600].std() > 1e-6 for x in clips.loudness]
    assert knowing["time_alignment"] == pytest.approx(np.mean(varying), abs=1e-3)
    assert any(varying)


def test_worlds_that_are_none(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        measuring.main([str(run), str(tmp_path)])
    assert "it is no generated world" in capsys.readouterr().err


def write_images(folder: Path) -> Path:
    """Four images in the layout of DenseAV's ADE20K sets, of two classes, and rows that do not count."""
    rows = ["image_location,ade_class_id,vggsound_file,speech_prompt_file"]
    for number in range(4):
        name, label = f"training/a/{number}.jpg", 2000 + number % 2
        for part in ("frames", "annotations"):
            (folder / part / "training/a").mkdir(parents=True, exist_ok=True)
        picture = np.full((60, 80, 3), 40, np.uint8)
        labels = np.zeros((60, 80, 3), np.uint8)
        left = 15 + 10 * number
        picture[20:40, left : left + 20] = 250
        labels[20:40, left : left + 20] = (label // 256 * 10, label % 256, number)  # blue tells instances
        Image.fromarray(picture).save(folder / "frames" / name)
        Image.fromarray(labels).save(folder / "annotations" / name.replace(".jpg", "_seg.png"))
        (folder / "audio").mkdir(exist_ok=True)
        soundfile.write(
            folder / "audio" / f"{number}.wav", 0.1 * np.sin(np.arange(8000) * (0.1 + number)), 16000
        )
        rows.append(f"{name},{label},somewhere/else/{number}.wav,")
    rows += [f"training/a/0.jpg,0,x/0.wav,{'s.wav'}", "training/a/0.jpg,2000,,"]
    (folder / "prompted_segmentation.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_measured_on_images_with_masks(run, tmp_path, capsys):
    folder = write_images(tmp_path / "ade")
    measuring.main([str(run), str(folder), "--json", str(tmp_path / "scores.json")])
    assert "4 pairs, by sound" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "scores.json").read_text())["trained"]) >= {"map", "miou", "pointing"}
    images = read_prompted(folder, "sound", 32)
    assert images.classes.tolist() == [2000, 2001, 2000, 2001]
    shown = images.frames[:, 0] > 145  # the white squares, which are what sounds
    assert (shown != images.truth).float().mean() < 0.03
    assert images.truth.any(2).any(1).all()
    grounder = Grounder.open(run)

    class Knowing(Grounder):
        def heat_of(self, waveform, frames):
            return images.truth[next(i for i, x in enumerate(images.waveforms) if x is waveform)][
                None
            ].float()

    scores = measure_prompted(Knowing(grounder.model, FBANK), images)
    assert {name: scores[name] for name in ("map", "miou", "pointing", "best_iou")} == dict.fromkeys(
        ("map", "miou", "pointing", "best_iou"), 1.0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "audio/1.wav").unlink(),
            r"prompted_segmentation\.csv:3: .*1\.wav can't be read: No such file",
        ),
        (
            lambda f: (f / "annotations/training/a/0_seg.png").write_bytes(b"no"),
            r":2: .*0_seg\.png: picture can't be",
        ),
        (
            lambda f: (f / "prompted_segmentation.csv").write_text("a,b\n"),
            "the column 'image_location' is missing",
        ),
    ],
)
def test_images_that_can_not_be_read(tmp_path, change, message):
    folder = write_images(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match=message):
        read_prompted(folder, "sound", 32)
    if "column" not in message:
        with pytest.raises(ValueError, match="no row with a speech_prompt_file and an ade_class_id above 0"):
            read_prompted(folder, "speech", 32)
