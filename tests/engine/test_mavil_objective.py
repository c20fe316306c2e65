"""MAViL's losses against their definitions, its teacher, its settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_mavil import SMALL_MAVIL, small_mavil
from torch import Tensor

from datasets.batch import AVBatch
from datasets.loading.frames import EvenFrames, random_frame
from engine.embed.embedder import EarsightEmbedder
from engine.objectives.mavil import Mavil, MavilConfig
from engine.objectives.mavil_self_training import MavilSelfTraining, MavilSelfTrainingConfig
from engine.parallel.world import World
from models import FbankConfig, PretrainedEncoders, uniform
from models.cav_mae.config import CavMaeModelConfig
from models.layers.blocks import attend
from models.layers.masking import MaskConfig
from models.mavil.config import MavilModelConfig
from models.mavil.mae import MavilMAE
from models.sample_random import Stream, pass_stream
from models.weights.description import Description, save_described
from models.weights.errors import WeightsError

FBANK = FbankConfig(target_length=64, num_mel_bins=32, mean=-4.2677393, std=2 * 4.5689974)
HALF = MaskConfig(0.5, 0.5)
ALONE = World(0, 1, torch.device("cpu"))


def clips(count: int, frames: int = 4) -> AVBatch:
    generator = torch.Generator().manual_seed(count)
    return AVBatch(
        ids=[f"clip{i}" for i in range(count)],
        rows=torch.arange(count),
        seeds=torch.arange(count) * 7919 + 1,
        waveform=torch.randint(-8000, 8000, (count, 11000), generator=generator, dtype=torch.int16),
        num_samples=torch.full((count,), 11000),
        frames=torch.randint(0, 256, (count, frames, 3, 32, 32), generator=generator, dtype=torch.uint8),
    )


def first_stage(**settings: Any) -> Mavil:
    return Mavil(small_mavil(mask=HALF), FBANK, MavilConfig(**settings))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """An exported first stage."""
    torch.manual_seed(5)
    model = small_mavil(mask=HALF)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn(value.shape)
    path = tmp_path / "first" / "model.safetensors"
    save_described(path, model.state_dict(), Description(model.config, FBANK))
    return path


def second_stage(teacher: Path, **settings: Any) -> MavilSelfTraining:
    return MavilSelfTraining(
        small_mavil(mask=HALF), FBANK, MavilSelfTrainingConfig(teacher=str(teacher), **settings)
    )


def views(
    objective: Mavil, batch: AVBatch
) -> tuple[Tensor, Tensor, list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs, and both views, from the model's parts, one clip at a time."""
    model = objective.model
    fbank, frames = objective.inputs(batch)
    found = []
    for number in (0, 1):
        rows = []
        for b in range(len(batch)):
            one = slice(b, b + 1)
            noise = [
                uniform(batch.seeds[one], pass_stream(stream, number), (8,))[0].tolist()
                for stream in (Stream.MASK_AUDIO, Stream.MASK_VISUAL)
            ]
            keep = [torch.tensor([sorted(range(8), key=values.__getitem__)[:4]]) for values in noise]
            towers = model.encoder.towers(fbank[one], frames[one], *keep)
            rows.append({"keep": keep, "towers": towers})
        found.append(rows)
    return fbank, frames, found[0], found[1]


def nce(queries: list[Tensor], keys: list[Tensor], temperature: float) -> float:
    losses = []
    for i, q in enumerate(queries):
        scores = [float(q @ k / (q.norm() * k.norm()) / temperature) for k in keys]
        losses.append(-math.log(math.exp(scores[i]) / sum(map(math.exp, scores))))
    return sum(losses) / len(losses)


def both_ways(one: list[Tensor], other: list[Tensor], temperature: float) -> float:
    return (nce(one, other, temperature) + nce(other, one, temperature)) / 2


def means(rows: list[dict[str, Any]], name: str) -> list[Tensor]:
    return [getattr(row["towers"], name)[0, 1:].double().mean(dim=0) for row in rows]


@torch.no_grad()
def test_contrast_equals_its_definition():
    objective, batch = first_stage(roll=False, inter_temperature=0.2, intra_temperature=0.7), clips(5)
    values = objective(batch)
    _, _, first, second = views(objective, batch)
    inter = both_ways(means(first, "audio"), means(first, "visual"), 0.2)
    intra = sum(both_ways(means(first, m), means(second, m), 0.7) for m in ("audio", "visual")) / 2
    assert values["loss_inter"].item() == pytest.approx(inter, rel=1e-5)
    assert values["loss_intra"].item() == pytest.approx(intra, rel=1e-5)
    reconstruction = values["loss_mae_audio"] + values["loss_mae_visual"]
    expected = reconstruction + 0.1 * values["loss_inter"] + 0.01 * values["loss_intra"]
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def decoded(model: MavilMAE, row: dict[str, Any], number: int, layer: str) -> Tensor:
    """(L, P) of one clip: [CLS] and every token, in the decoder of one modality."""
    fused: Any = model.encoder.fusion(row["towers"])
    tokens = (fused.audio, fused.visual)[number][0]
    decoder = (model.decoder.audio, model.decoder.visual)[number]
    x = decoder.embed(tokens)
    full = [decoder.mask_token + decoder.pos_embed[i] for i in range(8)]
    for place, i in enumerate(row["keep"][number][0].tolist()):
        full[i] = x[1 + place] + decoder.pos_embed[i]
    x = torch.stack([x[0], *full])[None]
    for block in decoder.blocks:
        x = block(x)
    return getattr(decoder, layer)(decoder.norm(x)[0, 1:])


def mean_error(
    predictions: list[Tensor], targets: list[Tensor], rows: list[dict], number: int, kept: bool
) -> float:
    errors = []
    for prediction, target, row in zip(predictions, targets, rows, strict=True):
        for token in range(8):
            if kept or token not in row["keep"][number][0].tolist():
                errors.append(((prediction[token] - target[token]).double() ** 2).mean())
    return float(sum(errors) / len(errors))


@torch.no_grad()
def test_reconstruction_equals_its_definition():
    objective, batch = first_stage(roll=False), clips(3)
    values = objective(batch)
    fbank, frames, first, _ = views(objective, batch)
    inputs = objective.model.encoder.patchify_audio(fbank), objective.model.encoder.patchify_visual(frames)
    for number, name in enumerate(("audio", "visual")):
        targets = []
        for patches in inputs[number]:
            variance = ((patches - patches.mean(-1, keepdim=True)) ** 2).sum(-1, keepdim=True)
            variance = variance / (patches.shape[-1] - 1)
            targets.append((patches - patches.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt())
        predictions = [decoded(objective.model, row, number, "pred") for row in first]
        expected = mean_error(predictions, targets, first, number, kept=False)
        assert values[f"loss_mae_{name}"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("normalize", "kept"), [(True, False), (False, True)])
@torch.no_grad()
def test_prediction_of_the_teacher_equals_its_definition(teacher, normalize, kept):
    objective = second_stage(teacher, roll=False, normalize_targets=normalize, predict_kept=kept)
    batch = clips(3)
    values = objective(batch)
    fbank, frames, first, _ = views(objective, batch)
    encoder: Any = objective._teacher.encoder(torch.device("cpu"))
    for number, name in enumerate(("audio", "visual")):
        targets = []
        for b in range(3):
            fused = encoder.fusion(encoder.towers(fbank[b : b + 1], frames[b : b + 1]))
            target = (fused.audio, fused.visual)[number][0, 1:]
            if normalize:
                centred = target - target.mean(-1, keepdim=True)
                target = centred / ((centred**2).mean(-1, keepdim=True) + 1e-6).sqrt()
            targets.append(target)
        predictions = [decoded(objective.model, row, number, "pred_features") for row in first]
        expected = mean_error(predictions, targets, first, number, kept)
        assert values[f"loss_context_{name}"].item() == pytest.approx(expected, rel=1e-4)
    context = values["loss_context_audio"] + values["loss_context_visual"]
    expected = context + 0.1 * values["loss_inter"] + 0.01 * values["loss_intra"]
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert "loss_mae_audio" not in values


@pytest.mark.parametrize("off", ["reconstruction_weight", "inter_weight", "intra_weight"])
def test_a_weight_of_0_skips_the_computation(monkeypatch, off):
    calls = []
    monkeypatch.setattr("models.layers.blocks.attend", lambda *qkv: calls.append(1) or attend(*qkv))
    objective = first_stage(**{off: 0.0})
    values = objective(clips(3))
    gone = {"reconstruction_weight": "loss_mae", "inter_weight": "loss_inter", "intra_weight": "loss_intra"}[
        off
    ]
    assert not any(name.startswith(gone) for name in values)
    towers, fusion_and_decoders = 2 * 2, 1 + 2
    views = 1 if off == "intra_weight" else 2
    assert len(calls) == views * towers + (0 if off == "reconstruction_weight" else fusion_and_decoders)
    values["loss"].backward()
    trained = {name for name, p in objective.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in objective.model.named_parameters() if p.grad is not None}
    less = first_stage().workload(bf16=False).flops - objective.workload(bf16=False).flops
    assert less == 0 if off == "inter_weight" else less > 0


def test_the_teacher_is_frozen_and_in_no_state(teacher):
    objective = second_stage(teacher)
    objective(clips(3))["loss"].backward()
    encoder = objective._teacher.encoder(torch.device("cpu"))
    assert not encoder.training
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())
    assert not any("teacher" in name for name, _ in objective.named_parameters())
    assert [name for name in objective.state_dict() if "teacher" in name] == ["teacher_sha256"]
    trained = {name for name, p in objective.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in objective.model.named_parameters() if p.grad is not None}
    assert {name for name, _ in objective.model.named_parameters()} - trained == {
        f"decoder.{m}.pred.{kind}" for m in ("audio", "visual") for kind in ("weight", "bias")
    }


def test_the_run_keeps_the_teacher_once(teacher, tmp_path):
    run = tmp_path / "run"
    objective = second_stage(teacher)
    objective.keep_in(run, resumed=False, world=ALONE)
    (kept,) = (run / "teacher").iterdir()
    assert kept.stem == bytes(objective.teacher_sha256.tolist()).hex()
    before = objective(clips(2))["loss"].item()
    teacher.unlink()  # the run goes on without it
    again = second_stage(teacher)
    again.keep_in(run, resumed=True, world=ALONE)
    again.load_state_dict(objective.state_dict())
    assert again(clips(2))["loss"].item() == before
    kept.unlink()
    with pytest.raises(WeightsError, match="no such file"):
        second_stage(teacher).keep_in(run, resumed=True, world=ALONE)


def other_weights(path: Path) -> None:
    model = small_mavil(mask=HALF)
    save_described(path, model.state_dict(), Description(model.config, FBANK))


def test_another_teacher_than_the_run_began_with_is_an_error(teacher, tmp_path):
    run = tmp_path / "run"
    objective = second_stage(teacher)
    objective.keep_in(run, resumed=False, world=ALONE)
    other_weights(teacher)
    with pytest.raises(WeightsError, match=r"objective\.teacher .* has changed"):
        second_stage(teacher).keep_in(run, resumed=True, world=ALONE)
    (kept,) = (run / "teacher").iterdir()
    other_weights(kept)
    with pytest.raises(WeightsError, match="it was changed"):
        second_stage(kept).keep_in(run, resumed=True, world=ALONE)
    kept.unlink()
    other = second_stage(teacher)
    other.keep_in(run, resumed=True, world=ALONE)
    with pytest.raises(ValueError, match="the run's teacher has changed"):
        other.load_state_dict(objective.state_dict())


def test_a_student_is_not_its_own_teacher(teacher, tmp_path):
    with pytest.raises(WeightsError, match="cannot be its own teacher"):
        second_stage(teacher).keep_in(tmp_path / "first", resumed=False, world=ALONE)


@pytest.mark.parametrize(
    ("config", "fbank", "message"),
    [
        (CavMaeModelConfig(name="cav_mae_tiny"), FBANK, "it holds a cav_mae_tiny; a teacher must be a MAViL"),
        ({"embed_dim": 48, "num_heads": 3}, FBANK, "its encoder_width is 48 and the student's 32"),
        ({"frames": 2}, FBANK, "its frames is 2 and the student's 4"),
        ({"audio_length": 128}, FBANK, "its audio_length is 128"),
        ({}, FbankConfig(target_length=64, num_mel_bins=32), "set fbank alike"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(tmp_path, config, fbank, message):
    path = tmp_path / "teacher.safetensors"
    if isinstance(config, dict):
        config = MavilModelConfig("mavil_tiny", **{**SMALL_MAVIL, "mask": HALF, **config})
        state = MavilMAE(config).state_dict()
    else:
        state = {"encoder.audio.patch_embed.weight": torch.zeros(2, 2)}
    save_described(path, state, Description(config, fbank))
    with pytest.raises(WeightsError, match=message):
        second_stage(path).keep_in(tmp_path / "run", resumed=False, world=ALONE)


def test_the_student_may_start_from_the_teacher(teacher, tmp_path):
    objective = second_stage(teacher, start_from_teacher=True)
    objective.keep_in(tmp_path / "run", resumed=False, world=ALONE)
    own, theirs = (
        x.state_dict() for x in (objective.model.encoder, objective._teacher.encoder(torch.device("cpu")))
    )
    assert all(torch.equal(own[name], value) for name, value in theirs.items())
    torch.manual_seed(0)
    deeper = MavilMAE(MavilModelConfig("mavil_tiny", **{**SMALL_MAVIL, "mask": HALF, "depth": 3}))
    config = MavilSelfTrainingConfig(teacher=str(teacher), start_from_teacher=True)
    with pytest.raises(WeightsError, match="start_from_teacher needs a student like it"):
        MavilSelfTraining(deeper, FBANK, config).keep_in(tmp_path / "other", resumed=False, world=ALONE)


def test_frames_that_are_read():
    needs = first_stage().needs()
    assert needs.train_frames == needs.held_out_frames == EvenFrames(4)
    single = Mavil(small_mavil(frames=1, mask=HALF), FBANK, MavilConfig())
    assert single.needs().train_frames is random_frame
    assert single(clips(3, frames=1))["loss"].isfinite()


def test_clips_are_embedded_with_all_their_frames():
    encoders = PretrainedEncoders(small_mavil().encoder, Description(small_mavil().config, FBANK)).eval()
    embedder = EarsightEmbedder(encoders)
    assert embedder.choose_frames == EvenFrames(4, repeat=True)
    assert {name: value.shape[1] for name, value in embedder(clips(2)).items()} == {
        "audio": 32,
        "visual": 32,
        "joint": 64,
    }


def test_pictures_of_all_frames_and_of_features(teacher):
    batch = clips(2)
    found = second_stage(teacher, reconstruction_weight=0.5).eval().pictures(batch)
    assert set(found) == {
        f"{what}/{kind}" for what in ("reconstruction", "features") for kind in ("frames", "spectrograms")
    }
    for picture in found.values():
        assert picture.dtype == torch.uint8
        assert picture.shape[0] == 3
        assert picture.float().std() > 0
    rows, columns = 2 * 3 * 36, 4 * 36  # three rows a clip, a column a frame, with gaps
    assert (
        found["reconstruction/frames"].shape[1:]
        == found["features/frames"].shape[1:]
        == (rows + 18, columns + 4)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inter_temperature": 0.0}, r"objective\.inter_temperature is 0\.0: it must be above 0"),
        ({"intra_temperature": -1.0}, r"objective\.intra_temperature is -1\.0"),
        ({"inter_weight": -0.1}, r"objective\.inter_weight is -0\.1: it must be 0 or more"),
        ({"reconstruction_weight": 0.0, "inter_weight": 0.0, "intra_weight": 0.0}, "nothing to learn"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MavilConfig(**settings)


def test_settings_that_do_not_fit_the_model_are_named():
    nothing_removed = MavilModelConfig("mavil_tiny", mask=MaskConfig(0.0, 0.8))
    with pytest.raises(ValueError, match=r"model\.mask\.audio_ratio"):
        MavilConfig().check(nothing_removed)
    MavilConfig(reconstruction_weight=0).check(nothing_removed)
    with pytest.raises(ValueError, match=r"objective\.teacher is not given"):
        MavilSelfTrainingConfig().check(MavilModelConfig("mavil_tiny"))
    with pytest.raises(ValueError, match=r"objective\.context_weight is 0"):
        MavilSelfTrainingConfig(teacher="x", context_weight=0)
