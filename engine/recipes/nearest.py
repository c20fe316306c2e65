"""Which recipe of ``configs/`` a run follows, and in which settings it differs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engine.config import PretrainConfig, parse_config
from engine.objectives.classification import ClassificationConfig
from engine.run_folder import RunFolder, flatten
from engine.tasks.finetune_config import LabelledConfig
from models.weights.sources import without_secrets
from strict_yaml import load_yaml, load_yaml_file

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

#: Settings of a place or of what is seen of a run, that say nothing of what it learns. Spectrogram statistics are the
#: set's.
_OF_THE_PLACE = (
    "data.", "output_dir", "init", "fbank.mean", "fbank.std", "seed", "log.", "allow_commands_in_files", "eval_only",
    "train.log_interval", "train.eval_", "train.checkpoint_", "train.keep_checkpoints", "train.accept_changed_data",
    "train.parallel.zero_stage", "train.parallel.accumulation_steps", "evaluation.",
)  # fmt: skip
#: ``objective.kind`` where a recipe leaves it out, by whether it is one of pretraining.
_DEFAULT_KINDS = {True: "cav_mae", False: ClassificationConfig.kind}
_ABSENT = "—"


@dataclass(frozen=True)
class Difference:
    """A setting that differs.

    Attributes:
        key: Its dotted key.
        values: What each side says, without what may be secret in a URL, and without commands.
        of_the_place: Whether it says nothing of what is learned.
    """

    key: str
    values: tuple[Any, ...]
    of_the_place: bool


@dataclass(frozen=True)
class Nearest:
    """The recipe that a run follows.

    Attributes:
        path: The recipe.
        differences: Of its settings and the run's.
    """

    path: Path
    differences: list[Difference]

    @property
    def changed(self) -> list[Difference]:
        """The differences that decide what is learned."""
        return [difference for difference in self.differences if not difference.of_the_place]


def of_the_place(key: str) -> bool:
    """Whether a setting says where or how much is logged, and nothing of what is learned."""
    return key.startswith(_OF_THE_PLACE)


def differences(configs: list[dict[str, Any]]) -> list[Difference]:
    """The settings in which configs differ, those that decide what is learned first."""
    flat = [flatten(config) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    found = []
    for key in keys:
        values = tuple(one.get(key, _ABSENT) for one in flat)
        if any(_plain(value) != _plain(values[0]) for value in values):
            found.append(Difference(key, without_secrets(values), of_the_place(key)))
    return sorted(found, key=lambda difference: difference.of_the_place)


def recipe_files() -> list[Path]:
    """All recipes, in order of their names."""
    return sorted(CONFIGS.glob("*.yaml"))


def nearest_recipe(run: RunFolder) -> Nearest | None:
    """The recipe of the run's objective and model with the fewest other settings; None where there is none.

    A recipe with a setting that the run's program or model does not have is no candidate. Of the recipe chosen, what it
    leaves out counts as its default; the model of fine-tuning, where it leaves that out, as that of the weights.
    """
    own = flatten(run.config)
    counted = {path: _changes(path, own, run.pretrains) for path in recipe_files()} if own else {}
    candidates = {path: count for path, count in counted.items() if count is not None}
    if not candidates:
        return None
    path = min(candidates, key=lambda one: candidates[one])
    named, theirs = _own_keys(path), resolved(path, run.pretrains, str(own["model.name"]))
    # An older run lacks keys that are new.
    both = [
        key
        for key in theirs
        if key in own and (run.pretrains or key in named or not key.startswith(("model.", "fbank.")))
    ]
    return Nearest(path, differences([{key: theirs[key] for key in both}, {key: own[key] for key in both}]))


@cache
def resolved(path: Path, pretrains: bool, model: str) -> dict[str, Any]:
    """All settings of a recipe by dotted keys, with the default ones of a model where it names none."""
    named = _own_keys(path)
    words = ["--config", str(path), "init=null"]  # the weights need not be there
    words += [] if "data.train" in named else ["data.train=to be given"]
    words += [] if "model.name" in named else [f"model.name={model}"]
    parsed = parse_config(PretrainConfig if pretrains else LabelledConfig, path.name, words)
    return flatten(load_yaml(parsed[1]))


@cache
def _own_keys(path: Path) -> dict[str, Any]:
    """What a recipe says itself, by dotted keys."""
    return flatten(load_yaml_file(path))


def _changes(path: Path, own: dict[str, Any], pretrains: bool) -> int | None:
    """How many of a recipe's own settings differ from a run's; None where it is a recipe of something else."""
    named = _own_keys(path)
    # What a recipe leaves out of these is their default.
    theirs = {"train.steps": None} | named
    if pretrains:
        theirs = {"model.name": "cav_mae_base"} | theirs
    if "objective.kind" in own:
        theirs = {"objective.kind": _DEFAULT_KINDS[pretrains]} | theirs
    if any(theirs.get(key, own.get(key)) != own.get(key) for key in ("model.name", "objective.kind")):
        return None
    if "model.name" not in own or not theirs.keys() <= own.keys():
        return None
    return sum(_plain(value) != _plain(own[key]) and not of_the_place(key) for key, value in theirs.items())


def _plain(value: Any) -> Any:
    """A value as it compares: 1 is 1.0, a tuple a list."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value
