"""CAV-MAE Sync and TG-DP as objectives: what they compute, what their teacher does, what they refuse."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.small_models import SMALL
from support.training import make_batch
from torch import nn

from datasets.loading.frames import RandomFrame, TooFewFramesError, frames_needed, random_frame
from engine.evaluation.features import Features
from engine.objectives.cav_mae import CavMae, CavMaeConfig
from engine.objectives.cav_mae_sync import CavMaeSyncConfig, CavMaeSyncObjective
from engine.objectives.tg_dp import TgDp, TgDpConfig, momentum_at
from models import (
    AudioVisualMAE,
    CavMaeModelConfig,
    CavMaeSync,
    CavMaeSyncModelConfig,
    FbankConfig,
    MaskConfig,
    Stream,
    info_nce,
    pass_stream,
    reconstruction_loss,
    uniform,
)
from models.cav_mae_sync.workload import Pass, pass_flops
from models.layers.masking import Masker

FBANK = FbankConfig(target_length=SMALL["audio_length"], num_mel_bins=SMALL["num_mel_bins"])


def sync_config(**overrides) -> CavMaeSyncModelConfig:
    sizes: dict[str, Any] = SMALL | {"segment_length": 32, "num_registers": 2} | overrides
    return CavMaeSyncModelConfig("cav_mae_sync_tiny", **sizes)


def sync(kind: Any = CavMaeSyncObjective, config: Any = None, **model) -> Any:
    torch.manual_seed(0)
    settings = {CavMaeSyncObjective: CavMaeSyncConfig, TgDp: TgDpConfig}[kind]
    return kind(CavMaeSync(sync_config(**model)), FBANK, config or settings(frames=4))


def clips(rows=(0, 1, 2, 3), frames=1) -> Any:
    """Clips of half a second of which four frames are stored."""
    batch: Any = make_batch(list(rows))
    index = torch.arange(frames).expand(len(rows), -1) if frames > 1 else torch.tensor(rows)[:, None] % 4
    return replace(
        batch,
        waveform=torch.cat([batch.waveform, -batch.waveform], dim=1),
        num_samples=batch.num_samples * 2,
        frames=batch.frames.expand(-1, frames, -1, -1, -1),
        frame_index=index,
        num_stored=torch.full((len(rows),), 4),
    )


def test_each_frame_goes_with_the_sound_around_it():
    objective, batch = sync(), clips(frames=4)
    segments, frames = objective.pairs(batch)
    fbank, _ = objective.inputs(batch)
    # 64 rows, 4 frames: middles 0, 16, 32, 48, stretches of 32.
    for place, start in enumerate((0, 0, 16, 32)):
        assert torch.equal(segments[:, place], fbank[:, start : start + 32])
    assert frames.shape == (4, 4, 3, 32, 32)


def test_sound_is_cut_by_time_where_that_is_wanted():
    """Known times first, else the clip's own length: half of it is padding here."""
    objective = sync(
        config=CavMaeSyncConfig(frames=4, align_by_time=True), segment_length=16, mask=MaskConfig(0.5, 0.5)
    )
    batch = clips(rows=(0, 1), frames=4)
    batch = replace(batch, num_samples=torch.tensor([5120, 10240]))
    fbank, _ = objective.inputs(batch)

    def starts(batch):
        segments, _ = objective.pairs(batch)
        candidates = fbank.unfold(1, 16, 1).transpose(2, 3)
        return [
            [next(i for i in range(49) if torch.equal(candidates[b, i], segments[b, n])) for n in range(4)]
            for b in range(2)
        ]

    assert starts(batch) == [[0, 0, 8, 16], [0, 8, 24, 40]]
    times = torch.tensor([[0.05, 0.1, 0.2, 0.3], [torch.nan] * 4])
    assert starts(replace(batch, frame_times=times)) == [[0, 2, 12, 16], [0, 8, 24, 40]]


@pytest.mark.parametrize("ratio", [None, 0.5, 0.0])
@pytest.mark.parametrize("local", [False, True])
def test_the_losses_are_their_definition(ratio, local):
    config = CavMaeSyncConfig(frames=4, contrast_mask_ratio=ratio, local_contrast=local, contrast_weight=0.3)
    objective, batch = sync(config=config), clips()
    model, masker = objective.model, Masker(objective.model.config)
    segments, frames = (x[:, 0] for x in objective.pairs(batch))

    def masks(number, share):
        audio = uniform(batch.seeds, pass_stream(Stream.MASK_AUDIO, number), (model.config.num_audio_tokens,))
        visual = uniform(
            batch.seeds, pass_stream(Stream.MASK_VISUAL, number), (model.config.num_visual_tokens,)
        )
        return masker.audio(audio, share), masker.visual(visual, share)

    first = masks(0, 0.75)
    out = model(segments, frames, *first)
    mae = reconstruction_loss(out.pred_audio, model.patchify_audio(segments), first[0].mask)
    mae = mae + reconstruction_loss(out.pred_visual, model.patchify_visual(frames), first[1].mask)
    streams = out.streams if ratio is None else model(segments, frames, *masks(1, ratio)).streams
    nce, _ = info_nce(streams.global_visual, streams.global_audio, 0, 0.05)
    if local:
        nce = (nce + info_nce(streams.visual.mean(1), streams.audio.mean(1), 0, 0.05)[0]) / 2
    values = objective(batch)
    torch.testing.assert_close(values["loss"], mae + 0.3 * nce)
    torch.testing.assert_close(values["loss_contrastive"], nce.detach())
    assert values["contrastive_chance"] == 0.25


@pytest.mark.parametrize("off", ["reconstruction_weight", "contrast_weight"])
@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_weight_of_0_switches_off_what_it_weighs(off, ratio):
    objective = sync(config=replace(CavMaeSyncConfig(frames=4, contrast_mask_ratio=ratio), **{off: 0.0}))
    values = objective(clips())
    gone = "loss_mae_audio" if off == "reconstruction_weight" else "loss_contrastive"
    assert gone not in values
    values["loss"].backward()
    decoder = [p.grad is not None for p in objective.model.decoder.parameters()]
    assert any(decoder) == (off == "contrast_weight")
    assert set(objective.pictures(clips(frames=4))) == (
        set() if off == "reconstruction_weight" else {"reconstruction/frames", "reconstruction/spectrograms"}
    )


def test_retrieval_compares_all_pairs():
    objective, batch = sync(), clips(frames=4)
    with torch.no_grad():
        found = objective.embed(batch)
    assert found["audio"].shape == found["visual"].shape == (4, 4, 32)
    segments, frames = objective.pairs(batch)
    third = objective.model.encoder(segments[:, 2], frames[:, 2])
    torch.testing.assert_close(found["audio"][:, 2], third.global_audio)
    torch.testing.assert_close(found["visual"][:, 2], third.global_visual)
    features = Features([*"abcd"], torch.arange(4), None, found)
    values = objective.measure(features)
    assert values["retrieval_chance_r1"] == 0.25
    pairs = (F.normalize(found[name], dim=-1) for name in ("audio", "visual"))
    scores = torch.einsum("q i d, g i d -> q g", *pairs) / 4
    hits = (scores.argmax(1) == torch.arange(4)).float().mean().item()
    assert values["retrieval_a2v_r1"] == pytest.approx(hits)
    assert objective.probed(features)["audio"].shape == (4, 32)


def test_the_teacher_chooses_what_is_kept_and_is_learned_from():
    objective, batch = sync(TgDp), clips()
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    segments, frames = (x[:, 0] for x in objective.pairs(batch))
    look = objective.teacher.global_attention(segments, frames)
    kept = [
        look.audio.topk(look.audio.shape[1] // 2).indices,
        look.visual.topk(look.visual.shape[1] // 2).indices,
    ]
    streams = objective.model.encoder(segments, frames, *kept, joint=False)
    pair = streams.global_audio, streams.global_visual
    nce = (info_nce(*pair, 0, 0.05)[0] + info_nce(pair[1], pair[0], 0, 0.05)[0]) / 2
    distillation = F.mse_loss(pair[0], look.global_audio) + F.mse_loss(pair[1], look.global_visual)
    values = objective(batch)
    torch.testing.assert_close(values["loss_contrastive"], nce.detach())
    torch.testing.assert_close(values["loss_distillation"], distillation.detach())
    total = values["loss_mae_audio"] + values["loss_mae_visual"] + distillation + 0.1 * nce
    torch.testing.assert_close(values["loss"].detach(), total.detach())
    values["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.model.parameters())
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())


def test_the_teacher_follows_the_student_as_a_function_of_the_step():
    objective = sync(TgDp, TgDpConfig(frames=4, momentum=0.9))
    before = {name: value.clone() for name, value in objective.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter += 1.0
    objective.after_step(5, 10)
    share = 1 - momentum_at(0.9, 5, 10)
    for name, value in objective.teacher.state_dict().items():
        moved = 0.0 if "pos_embed" in name else share
        torch.testing.assert_close(value, before[name] + moved, msg=name)
    assert [momentum_at(0.9, step, 10) for step in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1.0])
    assert any(name.startswith("teacher.") for name in objective.state_dict())
    assert not any(name.startswith("teacher.") for name in objective.model.state_dict())


def test_without_guidance_and_distillation_there_is_no_teacher():
    config = TgDpConfig(frames=4, guided=False, distillation_weight=0.0)
    plain = CavMaeSyncConfig(frames=4, bidirectional=True, contrast_mask_ratio=0.5)
    objective = sync(TgDp, config)
    assert objective.teacher is None
    objective.after_step(1, 2)
    assert torch.equal(objective(clips())["loss"], sync(config=plain)(clips())["loss"])


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_cav_mae_takes_a_second_pass_too(ratio):
    torch.manual_seed(0)
    model = AudioVisualMAE(CavMaeModelConfig("cav_mae_tiny", **SMALL))
    config = CavMaeConfig(contrast_mask_ratio=ratio, augment=False, contrast_weight=0.2)
    objective, batch = CavMae(model, FBANK, config), clips()
    fbank, frames = (x if x.ndim == 3 else x[:, 0] for x in objective.inputs(batch))

    def noise(number):
        audio = uniform(batch.seeds, pass_stream(Stream.MASK_AUDIO, number), (model.config.num_audio_tokens,))
        visual = uniform(
            batch.seeds, pass_stream(Stream.MASK_VISUAL, number), (model.config.num_visual_tokens,)
        )
        return audio, visual

    first = model(fbank, frames, *noise(0))
    second = first if ratio is None else model(fbank, frames, *noise(1), reconstruct=False, ratio=ratio)
    mae = reconstruction_loss(first.pred_audio, model.patchify_audio(fbank), first.mask_audio)
    mae = mae + reconstruction_loss(first.pred_visual, model.patchify_visual(frames), first.mask_visual)
    nce, _ = info_nce(second.embed_visual, second.embed_audio, 0, 0.05)
    assert torch.equal(objective(batch)["loss"], 1.0 * mae + 0.2 * nce)


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        (lambda: CavMaeSyncConfig(frames=1), {}, "objective.frames is 1: at least 2"),
        (lambda: CavMaeSyncConfig(retrieval_score="diagonal"), {}, "objective.retrieval_score: there is no"),
        (
            lambda: CavMaeSyncConfig(contrast_mask_ratio=1.0),
            {},
            r"contrast_mask_ratio is 1\.0.* lie in \[0, 1\)",
        ),
        (lambda: CavMaeSyncConfig(contrast_mask_ratio=0.99), {}, "leaves none of the 4 audio tokens"),
        (lambda: CavMaeConfig(contrast_mask_ratio=-0.1), {}, "contrast_mask_ratio is -0.1"),
        (lambda: CavMaeSyncConfig(), {"mask": MaskConfig(0.0, 0.75)}, "nothing to reconstruct"),
        (lambda: TgDpConfig(momentum=1.5), {}, r"objective.momentum is 1\.5.* lie in \[0, 1\]"),
        (lambda: TgDpConfig(momentum=-0.5), {}, "objective.momentum is -0.5"),
        (lambda: TgDpConfig(distillation_weight=-1.0), {}, "objective.distillation_weight is -1.0"),
        (lambda: TgDpConfig(contrast_mask_ratio=None), {}, "TG-DP contrasts in a pass of its own"),
        (lambda: TgDpConfig(), {"joint_depth": 0}, "model.joint_depth is 0"),
    ],
)
def test_wrong_settings_are_named(config, model, message):
    with pytest.raises(ValueError, match=message):
        config().check(sync_config(**model))


def test_too_few_frames_to_align_are_refused():
    choice = RandomFrame(4)
    assert frames_needed(choice) == 4
    assert choice(7, 11) == random_frame(7, 11)
    with pytest.raises(TooFewFramesError, match="has 3 frames, fewer than the 4 needed"):
        choice(3, 11)
    assert sync().needs().train_frames == choice


def linear_flops(objective, batch) -> float:
    """Of a forward pass, linear layer by linear layer."""
    found = []

    def count(layer, inputs, output):
        found.append(2.0 * output.numel() * layer.in_features)

    hooks = [m.register_forward_hook(count) for m in objective.modules() if isinstance(m, nn.Linear)]
    objective(batch)
    for hook in hooks:
        hook.remove()
    return sum(found)


def saved_bytes(objective, batch) -> int:
    """Bytes that autograd keeps of a forward pass, weights aside; each storage once."""
    saved = {}
    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        values = objective(batch)
    assert values["loss"].requires_grad
    return sum(size for pointer, size in saved.items() if pointer not in weights)


SIZES = {
    "embed_dim": 128,
    "decoder_embed_dim": 64,
    "modality_depth": 2,
    "decoder_depth": 2,
    "num_registers": 3,
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (CavMaeSyncObjective, CavMaeSyncConfig(frames=4)),
        (CavMaeSyncObjective, CavMaeSyncConfig(frames=4, reconstruction_weight=0)),
        (CavMaeSyncObjective, CavMaeSyncConfig(frames=4, contrast_mask_ratio=0.25)),
        (CavMaeSyncObjective, CavMaeSyncConfig(frames=4, contrast_weight=0)),
        (TgDp, TgDpConfig(frames=4)),
    ],
)
def test_the_workload_is_what_a_step_takes(kind, config):
    objective = sync(kind, config, joint_depth=2, contrast_depth=1, **SIZES)
    work = objective.workload(bf16=False)
    forward = linear_flops(objective, clips()) / 4
    model = objective.model.config
    look = Pass(model.num_audio_tokens, model.num_visual_tokens, joint=False)
    # The teacher's pass is counted once. It goes around the contrast blocks, and ranks by a second look at one layer.
    teacher = pass_flops(replace(model, contrast_depth=0), look) if kind is TgDp else 0.0
    ranking = 0.0 if kind is not TgDp else 2.0 * 3 * 128 * 128 * look.separate_tokens
    assert work.flops == pytest.approx(3 * (forward - teacher - ranking) + teacher)
    measured = (saved_bytes(objective, clips(range(24))) - saved_bytes(objective, clips(range(8)))) / 16
    assert work.activations == pytest.approx(measured, rel=0.1)
