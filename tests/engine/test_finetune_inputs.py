"""Fine-tuning refuses what can't be meant: labels, classes, heads, encoders that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from support.finetuning import small_config
from support.shards import make_shards
from support.training import small_model_config

from datasets.index import build_table
from datasets.loading.config import WeightedSet
from datasets.shards.manifest import Label, ShardIndex
from engine.config import parse_config
from engine.evaluation.pictures import confusion_picture, per_class_bars
from engine.objectives.classification import LossName, Modalities
from engine.parallel.world import World
from engine.records.runlog import read_metrics
from engine.tasks.classifier_task import build_classification, frozen_parts
from engine.tasks.encoder_weights import load_classifier_weights, load_encoder_weights
from engine.tasks.finetune import (
    check_classes,
    evaluate_only,
    finetune,
    keep_classes,
)
from engine.tasks.finetune_config import FinetuneConfig
from engine.tasks.labelled_sets import (
    LabelledSet,
    Relabelled,
    check_held_out,
    check_training_labels,
    class_places,
    held_out_loader,
    open_labelled,
)
from models import AudioVisualClassifier, AudioVisualMAE, CavMaeModelConfig, FbankConfig
from models.weights.classes import kept_classes

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("labelled"), 10, 5, seconds=0.2, frames=1)


@pytest.fixture
def train(shards: Path) -> LabelledSet:
    return open_labelled(config(shards), str(shards))


def config(shards: Path, run: str = "unused", **options: Any) -> FinetuneConfig:
    return small_config(str(shards), run, **options)


def fbank(model: CavMaeModelConfig) -> FbankConfig:
    return FbankConfig(target_length=model.audio_length, num_mel_bins=model.num_mel_bins)


def save(model: torch.nn.Module, path: Path) -> str:
    safetensors.torch.save_file(model.state_dict(), path)
    return str(path)


def test_labels_missing(tmp_path: Path, shards: Path):
    plain = make_shards(tmp_path, 6, 6, num_classes=0, seconds=0.2, frames=1)
    with pytest.raises(ValueError, match=r"has no labels: prepare it with"):
        open_labelled(config(shards), str(plain))


def test_one_label_loss_on_clips_with_several(train: LabelledSet, shards: Path):
    check_training_labels(config(shards), [train])
    train.table.label_offsets = train.table.label_offsets.copy()
    train.table.label_offsets[4:] += 1
    train.table.label_ids = torch.cat(
        [torch.from_numpy(train.table.label_ids.astype(int)), torch.zeros(1)]
    ).numpy()
    with pytest.raises(
        ValueError, match=r"cross_entropy needs one label a clip, but 1 clips .*'clip-00003' with 2"
    ):
        check_training_labels(config(shards, sampling={"balanced": False, "mixup": 0}), [train])
    check_training_labels(config(shards, loss=LossName.bce), [train])


def test_clips_that_are_never_drawn_are_counted(
    train: LabelledSet, shards: Path, caplog: pytest.LogCaptureFixture
):
    train.table.label_offsets = train.table.label_offsets.copy()
    train.table.label_offsets[4:] -= 1
    check_training_labels(config(shards, loss=LossName.bce, sampling={"balanced": False}), [train])
    assert not caplog.messages
    check_training_labels(config(shards, loss=LossName.bce), [train])
    assert caplog.messages == ["1 of 10 training clips have no label: sampling.balanced never draws them"]


def test_a_class_unknown_to_the_vocabulary(tmp_path: Path, train: LabelledSet, shards: Path):
    other = make_shards(tmp_path, 10, 5, num_classes=5, seconds=0.2, frames=1)
    with pytest.raises(
        ValueError, match=r"has classes that the vocabulary of .* lacks: 'class 3', 'class 4'"
    ):
        class_places(train, open_labelled(config(shards), str(other)))
    # Found before anything is trained, not by the evaluation at the end.
    run = tmp_path / "run"
    wanted = config(shards, str(run), evaluation={"shards": str(other)})
    with pytest.raises(ValueError, match=r"lacks: 'class 3', 'class 4'"):
        finetune(wanted, "", ALONE)
    assert not run.exists()


def test_training_sets_of_other_classes_are_refused(tmp_path: Path, shards: Path):
    other = make_shards(tmp_path / "set", 10, 5, num_classes=4, seconds=0.2, frames=1)
    sets = [WeightedSet(str(shards)), WeightedSet(str(other), 2.0)]
    both = config(shards, str(tmp_path / "run"))
    both = replace(both, data=replace(both.data, train=sets))
    with pytest.raises(ValueError, match=r"have different classes \(3 classes and 4\): prepare both"):
        finetune(both, "", ALONE)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="fit_head needs a single training set"):
        replace(both, fit_head=True)
    with pytest.raises(ValueError, match=r"evaluation.frozen_features needs a single training set"):
        replace(both, evaluation=replace(both.evaluation, frozen_features=True))


def test_features_of_sound_and_picture_need_both(train: LabelledSet, shards: Path):
    train.table.frame_slots = []
    with pytest.raises(ValueError, match=r"evaluation.frozen_features needs sound and frames"):
        check_held_out(config(shards, evaluation={"frozen_features": True}), train)
    check_held_out(config(shards), train)


def test_the_same_classes_in_another_order(tmp_path: Path, train: LabelledSet, shards: Path):
    other = make_shards(tmp_path, 10, 5, seconds=0.2, frames=1)
    index = ShardIndex.load(other)
    turned = replace(index, labels=(Label("class 2"), Label("class 0"), Label("class 1")))
    turned.save(other)
    build_table(other, turned)
    loader = held_out_loader(config(shards), train, str(other), ALONE, every_frame=False)
    assert isinstance(loader, Relabelled)
    batches = list(loader)
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    assert labels.argmax(1).tolist() == [i % 3 for i in range(10)]


def test_a_head_of_another_size(tmp_path: Path, train: LabelledSet, shards: Path):
    model = AudioVisualClassifier(small_model_config(), 4)
    init = save(model, tmp_path / "four.safetensors")
    wanted = replace(config(shards), init=init, init_head=True)
    with pytest.raises(ValueError, match=r"has a head of 4 classes, and the training set has 3"):
        build_classification(wanted, train)
    kept = build_classification(replace(wanted, init_head=False), train)
    assert torch.equal(
        kept.model.get_parameter("encoder.norm.joint.weight"),
        model.get_parameter("encoder.norm.joint.weight"),
    )
    init = save(AudioVisualMAE(small_model_config()), tmp_path / "pretrained.safetensors")
    with pytest.raises(ValueError, match="has no classification head"):
        build_classification(replace(wanted, init=init), train)


def test_a_kept_head_gives_the_same_logits(tmp_path: Path, train: LabelledSet, shards: Path):
    model = AudioVisualClassifier(small_model_config(), 3).eval()
    init = save(model, tmp_path / "three.safetensors")
    again = build_classification(replace(config(shards), init=init, init_head=True), train).model
    sound, picture = torch.randn(2, 32, 32), torch.randn(2, 3, 32, 32)
    assert torch.equal(model(sound, picture), again(sound, picture))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embed_dim": 48}, "width 48"),
        ({"modality_depth": 2}, "has no place in the model"),
        ({"joint_depth": 0}, "missing in the file"),
        ({"patch_size": 8}, "patch"),
    ],
)
def test_an_encoder_that_does_not_fit(tmp_path: Path, sizes: dict[str, int], message: str):
    init = save(AudioVisualMAE(small_model_config(**sizes)), tmp_path / "other.safetensors")
    model = small_model_config()
    with pytest.raises(ValueError, match=message):
        load_encoder_weights(init, AudioVisualMAE(model).encoder, fbank(model))


def test_what_may_differ_is_allowed_by_name(tmp_path: Path, train: LabelledSet, shards: Path):
    deeper = AudioVisualMAE(small_model_config(modality_depth=2))
    wanted = replace(config(shards), init=save(deeper, tmp_path / "deeper.safetensors"))
    with pytest.raises(ValueError, match="allow what may differ by name"):
        build_classification(wanted, train)
    kept = build_classification(replace(wanted, init_allow=("encoder.*.blocks.1.*",)), train).model.encoder
    assert torch.equal(
        kept.get_parameter("audio.patch_embed.weight"), deeper.encoder.audio.patch_embed.weight
    )


def test_other_lengths_and_sizes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pretrained = AudioVisualMAE(small_model_config())
    init = save(pretrained, tmp_path / "short.safetensors")
    model = small_model_config(audio_length=64, image_size=64)
    encoder = AudioVisualClassifier(model, 3).encoder
    report = str(load_encoder_weights(init, encoder, fbank(model)))
    assert "2×2 to 2×4" in report
    assert "interpolated from 2×2 to 4×4" in report
    assert torch.equal(
        encoder.get_parameter("audio.patch_embed.weight"), pretrained.encoder.audio.patch_embed.weight
    )
    streams = encoder(torch.randn(1, 64, 32), torch.randn(1, 3, 64, 64))
    assert streams.joint is not None
    assert streams.joint.shape[1] == 8 + 16


def make_checkpoint(folder: Path, config: CavMaeModelConfig) -> str:
    """As a run holds it, but for the state of the optimizer."""
    folder.mkdir(parents=True)
    save(AudioVisualMAE(config), folder / "model.safetensors")
    sizes = {key: value for key, value in vars(config).items() if isinstance(value, (int, float))}
    values = {"model": {"name": config.name, **sizes}, "fbank": {"mean": -4.5, "std": 3.9}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    state = {"step": 2, "world_size": 1, "zero_stage": 0, "torch": "", "deepspeed": ""}
    (folder / "state.json").write_text(json.dumps(state))
    return str(folder)


def test_what_to_give_of_the_run_s_own_config(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """An encoder that does not fit, and one that fits but was trained on other input: both name key and value."""
    model = small_model_config()
    encoder = AudioVisualClassifier(model, 3).encoder
    larger = make_checkpoint(tmp_path / "larger", small_model_config(image_size=64))
    load_encoder_weights(larger, encoder, fbank(model))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    expected = ["model.image_size=64", "fbank.mean=-4.5", "fbank.std=3.9"]
    assert [message.split("give ")[1] for message in warnings] == expected
    for key, value in {"embed_dim": 48, "num_heads": 4, "modality_depth": 2}.items():
        other = make_checkpoint(tmp_path / key, small_model_config(**{key: value}))
        with pytest.raises(ValueError, match=f"it was made with model.{key}={value}, and here is"):
            load_encoder_weights(other, encoder, fbank(model))


def test_what_is_frozen_is_named(train: LabelledSet, shards: Path):
    def frozen(**options: Any) -> list[str]:
        return frozen_parts(build_classification(config(shards, **options), train).model)

    assert frozen(freeze_encoder=True) == ["encoder"]
    assert frozen(pool_separate=True) == []
    assert {"encoder.visual", "encoder.norm.joint"} < set(frozen(modalities=Modalities.audio))


def test_a_run_keeps_its_classes(tmp_path: Path, train: LabelledSet):
    keep_classes(tmp_path, train)
    check_classes(tmp_path, train)
    (tmp_path / "classes.json").write_text('["dog", "cat", "bird"]')
    with pytest.raises(ValueError, match="was trained on other classes"):
        check_classes(tmp_path, train)


ODD_NAMES = ["a\u2028b", "c\x85d", "e\nf", "g\r\nh", "i\x0bj", ""]


def test_class_names_may_hold_ends_of_lines(tmp_path: Path, train: LabelledSet):
    labels = [replace(train.index.labels[0], name=name) for name in ODD_NAMES]
    odd = replace(train, index=replace(train.index, labels=tuple(labels)))
    keep_classes(tmp_path, odd)
    check_classes(tmp_path, odd)
    assert kept_classes(tmp_path) == ODD_NAMES
    table = [{"class": name, "positives": 1, "average_precision": 0.5, "auc": 0.5} for name in ODD_NAMES]
    assert per_class_bars(table, "audio").shape[0] == 3
    assert confusion_picture(torch.eye(6), ODD_NAMES, "audio").shape[0] == 3
    (tmp_path / "classes.json").write_text('["a", ')
    with pytest.raises(ValueError, match=r"classes\.json is not JSON"):
        check_classes(tmp_path, odd)


def test_a_run_of_before_kept_a_class_a_line(tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes("a\u2028b\nc\x85d\ne\rf\n".encode())
    assert kept_classes(tmp_path) == ["a\u2028b", "c\x85d", "e\rf"]


def test_a_refused_run_changes_nothing_of_the_run_that_is_there(tmp_path: Path, shards: Path):
    """A pretraining run's folder, and one of other classes."""
    make_checkpoint(tmp_path / "checkpoints" / "step_00000002", small_model_config())
    (tmp_path / "config.yaml").write_text("of: the other\n")
    wanted = config(shards, str(tmp_path))
    with pytest.raises(ValueError, match="is of another model"):
        finetune(wanted, "of: this\n", ALONE)
    (tmp_path / "classes.json").write_text('["dog", "cat", "bird"]')
    with pytest.raises(ValueError, match="was trained on other classes"):
        finetune(wanted, "of: this\n", ALONE)
    assert (tmp_path / "config.yaml").read_text() == "of: the other\n"
    assert (tmp_path / "classes.json").read_text() == '["dog", "cat", "bird"]'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "classes.json", "config.yaml"]


def test_nothing_to_evaluate(tmp_path: Path, train: LabelledSet, shards: Path):
    with pytest.raises(ValueError, match="has no checkpoint to evaluate; give one with init"):
        evaluate_only(config(shards, str(tmp_path)), "model: small\n", ALONE, train, tmp_path)
    model = AudioVisualClassifier(small_model_config(), 2)
    init = save(model, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="head of 2 classes"):
        load_classifier_weights(init, model, fbank(small_model_config()), ["a", "b", "c"])


def test_evaluation_without_training_adds_to_what_is_there(tmp_path: Path, train: LabelledSet, shards: Path):
    init = save(AudioVisualMAE(small_model_config()), tmp_path / "pretrained.safetensors")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 7, "train/loss": 1.5}\n')
    wanted = replace(config(shards, str(run)), init=init, eval_only=True)
    assert finetune(wanted, "model: small\n", ALONE)
    records = read_metrics(run)
    assert records[0] == {"step": 7, "train/loss": 1.5}
    assert "init/linear_audio_top1" in records[1]
    assert (run / "evaluation" / "config.yaml").read_text() == "model: small\n"
    report = (run / "evaluation" / "init" / "metrics.json").read_text()
    assert "linear_audio_top1" in report
    assert "results" not in report


def test_settings_that_exclude_each_other(shards: Path):
    base = config(shards)
    for changes, message in (
        ({"init_head": True}, "init_head needs init"),
        ({"eval_only": True, "data": replace(base.data, val=None)}, "eval_only needs data.val"),
        ({"fbank": replace(base.fbank, target_length=99)}, "fbank.target_length is 99"),
        (
            {"train": replace(base.train, eval_interval=5), "data": replace(base.data, val=None)},
            "train.eval_interval",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            replace(base, **changes)


@pytest.mark.parametrize(
    ("name", "lr", "ratio", "batch", "epochs", "halve", "average", "loss", "balanced"),
    [
        ("audioset_20k", 5e-5, 100, 36, 15, 5, (3, 15), "bce", False),
        ("audioset_2m", 1e-5, 50, 48, 10, 2, (1, 10), "bce", True),
        ("vggsound", 1e-4, 10, 48, 10, 2, (3, 10), "cross_entropy", True),
    ],
)
def test_recipes_have_the_published_numbers(
    name: str,
    lr: float,
    ratio: int,
    batch: int,
    epochs: int,
    halve: int,
    average: tuple[int, int],
    loss: str,
    balanced: bool,
):
    words = ["--config", f"configs/finetune_{name}.yaml", "model.name=cav_mae_base"]
    recipe, _ = parse_config(FinetuneConfig, "test", words)
    task, sampling, schedule = recipe.objective, recipe.sampling, recipe.schedule
    assert (recipe.optimizer.lr, task.head_lr_ratio) == (lr, ratio)
    assert (recipe.train.parallel.global_batch_size, recipe.train.epochs) == (batch, epochs)
    assert (schedule.halve_from_epoch, schedule.halve_every_epochs, schedule.warmup_epochs) == (halve, 1, 0)
    assert (recipe.averaging.first_epoch, recipe.averaging.last_epoch) == average
    assert (task.loss, sampling.balanced, sampling.mixup, sampling.mixup_alpha) == (loss, balanced, 0.5, 10)
    assert (task.freq_mask, task.time_mask, task.noise_and_roll, task.label_smoothing) == (48, 192, True, 0.1)


@pytest.mark.parametrize("name", ["linear_probe", "finetune_tiny"])
def test_other_recipes_are_valid(name: str):
    words = ["--config", f"configs/{name}.yaml", "model.name=cav_mae_base"]
    recipe, _ = parse_config(FinetuneConfig, "test", words)
    assert recipe.objective.freeze_encoder == (name == "linear_probe")
