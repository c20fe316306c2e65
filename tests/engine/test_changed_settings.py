"""What was changed since a checkpoint is applied and said, or refused by name: every key of a config, and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.objectives import tiny_objective
from support.processes import run_ranks

from engine.checkpoints.folder import Checkpoint, CheckpointError, CheckpointState
from engine.checkpoints.loading import check_objective
from engine.config import PretrainConfig, parse_config
from engine.objectives.registry import objective_kind, register_objective
from engine.tasks.finetune_config import FinetuneConfig
from engine.training.changes import check_data, check_groups, check_settings

#: What the numbers of a checkpoint mean depends on these.
REFUSED = ("seed", "model.", "objective.kind")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree


def checkpoint(folder: Path, config_yaml: str, **state: Any) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml)
    return Checkpoint(folder, CheckpointState(4, 1, 0, "2", "0", **state))


@pytest.mark.parametrize("kind", [PretrainConfig, FinetuneConfig])
def test_every_key_is_applied_or_refused(tmp_path: Path, kind: type) -> None:
    _, text = parse_config(kind, "test", ["data.train=shards"])
    values = flat(yaml.safe_load(text))
    assert len(values) > 50
    before = checkpoint(tmp_path, text)
    assert check_settings(before, text) == []
    for key, value in values.items():
        changed = yaml.safe_dump(nested(values | {key: "another"}))
        if key.startswith(REFUSED) and not key.startswith("model.mask."):
            with pytest.raises(
                CheckpointError, match=f"can't be changed when resuming: {key}: .* → another. Set"
            ):
                check_settings(before, changed)
        else:
            assert check_settings(before, changed) == [f"{key}: {value} → another"]


def test_a_key_that_the_checkpoints_version_did_not_have_is_no_change(tmp_path: Path) -> None:
    before = checkpoint(tmp_path, "model: {name: a}\n")
    check_settings(before, "model: {name: a, new: 1}\nseed: 0\n")


def test_the_optimizers_settings_are_the_configs_and_not_the_checkpoints(tmp_path: Path) -> None:
    (found,) = run_ranks("support.resumes:changed_optimizers", 1, folder=str(tmp_path))
    for stage in found:
        assert stage["step"] == 2
        decay = {group["name"]: group["weight_decay"] for group in stage["groups"]}
        assert decay == {"decay": 0.5, "no_decay": 0.0}
        for group in stage["groups"]:
            assert (*group["betas"], group["eps"]) == (0.5, 0.6, 1e-3)
            assert not group["decoupled_weight_decay"]


def test_other_groups_are_refused_with_the_keys_that_made_them(tmp_path: Path) -> None:
    config = "objective: {freeze_encoder: false, smoothing: 1}\n"
    before = checkpoint(tmp_path, config, groups={"decay": ["a", "b"], "no_decay": ["c"]})
    check_groups(before, {"decay": ["a", "b"], "no_decay": ["c"]}, config)
    changed = config.replace("false", "true")
    with pytest.raises(CheckpointError, match=r"\(decay\).*objective.freeze_encoder: False → True"):
        check_groups(before, {"decay": ["b"], "no_decay": ["c"]}, changed)


def test_another_training_set_under_the_same_path(tmp_path: Path) -> None:
    before = checkpoint(tmp_path, "data: {}\n", data="a" * 64)
    assert check_data(before, "a" * 64, accepted=False) is None
    assert (
        check_data(checkpoint(tmp_path, "data: {}\n"), "b" * 64, accepted=False) is None
    )  # an earlier version's
    with pytest.raises(CheckpointError, match=r"other clips or classes .* train.accept_changed_data=true"):
        check_data(before, "b" * 64, accepted=False)
    assert "has changed since that checkpoint" in str(check_data(before, "b" * 64, accepted=True))


def test_a_checkpoint_of_another_objective_is_refused_with_both_kinds(tmp_path: Path) -> None:
    before = checkpoint(tmp_path, "", objective="mavil")
    with pytest.raises(CheckpointError, match="is of the objective mavil, this run is of cav_mae: set"):
        check_objective(before, tiny_objective("cav_mae"))


def test_a_teacher_missing_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    before = checkpoint(tmp_path, "", objective="tg_dp", beside_model=())
    with pytest.raises(CheckpointError, match="has no teacher, which the objective tg_dp trains with"):
        check_objective(before, tiny_objective("tg_dp"))


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="kind 'cav_mae' is registered already"):
        register_objective(objective_kind("cav_mae"))
