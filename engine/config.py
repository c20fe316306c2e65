"""The config of a run: everything in one place, parsed strictly.

``--config file.yaml`` and then dotted overrides, ``--train.steps 10``, ``--train.steps=10`` or ``train.steps=10``.
Unknown keys, wrong types and impossible combinations are errors that name the key. ``--print_config`` shows the
result.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from atomic import write_atomically
from datasets.loading.loader import DataConfig
from datasets.shards.names import is_pipe
from datasets.untrusted import shown
from engine.objectives.base import ObjectiveConfig
from engine.objectives.registry import objective_kind
from engine.records.wandb_log import LogConfig
from engine.settings import given_settings
from engine.training.optimizer import OptimizerConfig
from engine.training.schedule import ScheduleConfig
from engine.training.train_config import TrainConfig
from home_paths import command_line, expand_values
from models import FbankConfig, ModelConfig, create_config, family_of
from strict_yaml import ConfigParser, check_files, contradictions, use_strict_yaml

T = TypeVar("T", bound="RunConfig")

_DEFAULT_KIND = "cav_mae"
#: The model where none is named.
DEFAULT_MODEL = "cav_mae_base"
ALLOW_COMMANDS = "--allow_commands_in_files"
_OVERRIDE = re.compile(r"^[A-Za-z_]\w*(\.\w+)*=")
#: Keys of version 0.1's first configs that have another name, and what to write now.
_RENAMED = {
    "optimizer.decoupled": "optimizer.kind: adamw for decoupled: true, optimizer.kind: adam for false"
}


@dataclass(frozen=True)
class RunConfig:
    """What every run has.

    Attributes:
        data: Training and validation shards, and how they are read.
        output_dir: The run's folder. A run that is there already is resumed.
        seed: Weights, order of clips, frames, masks, mixing and augmentation derive from it.
        init: Weights to begin with (docs/weights.md): a run, a checkpoint, a published CAV-MAE or ImageNet MAE file,
            ``timm:NAME:FILE``, a DeepSpeed folder; null for random initialisation.
        init_allow: Patterns of tensors that may be missing, misshapen or left over in these, such as ``decoder.*``.
        model: The model; ``name`` is the preset, and its family decides which further keys there are.
        fbank: The spectrogram's settings; its length and bins must be the model's.
        optimizer: Adam's settings.
        schedule: The learning rate's.
        train: Steps, batch, precision, intervals.
        log: Where numbers and pictures go beside the run's folder.
    """

    data: DataConfig
    output_dir: str
    seed: int = 0
    init: str | None = None
    init_allow: tuple[str, ...] = ()
    model: ModelConfig = field(default_factory=partial(create_config, DEFAULT_MODEL))
    fbank: FbankConfig = field(default_factory=FbankConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def trains(self) -> bool:
        """Whether the run's folder is trained in, and not only looked at."""
        return True

    @property
    def status_folder(self) -> Path:
        """Where the program says how it stands."""
        return Path(self.output_dir)

    @classmethod
    def narrowed(cls, chosen: Mapping[str, str]) -> type[RunConfig]:
        """This class with the keys that belong to what was chosen.

        Args:
            chosen: What a command line says of ``objective.kind`` and ``model.name``, where it does.

        Raises:
            ValueError: There is no such objective or model.
        """
        return with_types(cls, model=chosen.get("model.name", DEFAULT_MODEL))

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that other settings decide, by dotted key; those that are given win.

        Args:
            given: What a command line and its files say, by dotted key.

        Raises:
            ValueError: What decides them can't be read.
        """
        return {}

    def __post_init__(self) -> None:
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed is {shown(self.seed)}; it must fit 64 bits")
        fbank, model = self.fbank, self.model
        if fbank.target_length != model.audio_length:
            raise ValueError(
                f"fbank.target_length is {fbank.target_length} and model.audio_length {model.audio_length}: "
                "they are the same length and must be equal"
            )
        if fbank.num_mel_bins != model.num_mel_bins:
            raise ValueError(
                f"fbank.num_mel_bins is {fbank.num_mel_bins} and model.num_mel_bins {model.num_mel_bins}: "
                "they must be equal"
            )


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """A pretraining run.

    Attributes:
        objective: The losses; ``kind`` decides which further keys there are.
        picture_interval: Steps between pictures of the first held-out clips, besides those of every evaluation; 0 for
            none.
    """

    output_dir: str = "runs/pretrain"
    objective: ObjectiveConfig = field(default_factory=lambda: objective_kind(_DEFAULT_KIND).config())
    picture_interval: int = 0

    @classmethod
    def narrowed(cls, chosen: Mapping[str, str]) -> type[RunConfig]:
        """See `RunConfig.narrowed`."""
        objective = objective_kind(chosen.get("objective.kind", _DEFAULT_KIND))
        return with_types(cls, chosen.get("model.name", objective.default_model), objective.config)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_interval < 0:
            raise ValueError(f"picture_interval is {self.picture_interval}: it must be 0 or more")
        if self.picture_interval and not self.data.val:
            raise ValueError(
                f"picture_interval is {self.picture_interval}, and there are no held-out clips to show: give data.val"
            )
        objective_kind(self.objective.kind).check_model(self.model)
        self.objective.check(self.model)


def parse_config(kind: type[T], program: str, arguments: Sequence[str] | None = None) -> tuple[T, str]:
    """Reads a config of dataclass ``kind`` from a command line; ends the program with a message where it is wrong.

    Args:
        kind: The dataclass.
        program: The program's name, for its help.
        arguments: The command line; None is this process's own.

    Returns:
        The config, and the same as YAML.
    """
    # No abbreviations: `--objective.head_lr` is unknown, not short for `head_lr_ratio`.
    given = command_line(arguments)
    words = [f"--{word}" if _OVERRIDE.match(word) else word for word in given if word != ALLOW_COMMANDS]
    allowed_commands = ALLOW_COMMANDS in given
    settings = given_settings(words)
    try:
        of_init = kind.defaults(settings)
        chosen = of_init | settings
        keys = ("objective.kind", "model.name")
        narrowed = kind.narrowed({key: str(chosen[key]) for key in keys if key in chosen})
    except ValueError as error:
        sys.stderr.write(f"{program}: error: {error}\n")
        raise SystemExit(2) from error
    use_strict_yaml()
    parser = _Parser(prog=program, description=(kind.__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file with the keys below")
    parser.add_argument(
        ALLOW_COMMANDS, action="store_true", help="run pipe: commands that a config file names"
    )
    parser.add_class_arguments(narrowed, fail_untyped=True, sub_configs=False)
    for source, target in (("audio_length", "target_length"), ("num_mel_bins", "num_mel_bins")):
        parser.link_arguments(f"model.{source}", f"fbank.{target}")
    parser.take_defaults(of_init, settings)
    try:
        check_files(words)
    except ValueError as error:
        parser.error(str(error))
    for sentence in contradictions(words):
        print(f"{program}: note: {sentence}", file=sys.stderr)
    parsed = parser.parse_args(words)
    try:
        _refuse_given_commands(parsed.as_dict(), allowed_commands, words)
    except ValueError as error:
        parser.error(str(error))
    for key, value in list(parsed.items()):
        parsed[key] = expand_values(value)
    try:
        text = parser.dump(parsed, skip_unset=False, skip_link_targets=False)
        for own in ("config", ALLOW_COMMANDS.removeprefix("--")):
            parsed.pop(own, None)
        return cast(T, narrowed(**vars(parser.instantiate(parsed)))), text
    except ValueError as error:
        parser.error(str(error))


def _refuse_given_commands(values: Any, allowed: bool, words: Sequence[str]) -> None:
    """Raises a ``ValueError`` for a ``pipe:`` command that a file says and nobody typed: it would be run."""
    if isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            _refuse_given_commands(value, allowed, words)
    elif isinstance(values, str) and is_pipe(values) and not allowed and not _typed(values, words):
        raise ValueError(
            f"a config file names the command {shown(values)}, which would be run. Give it on the command line, "
            f"or let commands of files be run with {ALLOW_COMMANDS}"
        )


def _typed(value: str, words: Sequence[str]) -> bool:
    return any(word == value or word.endswith(f"={value}") for word in words)


@cache
def with_types(kind: type[T], model: str, objective: type[ObjectiveConfig] | None = None) -> type[T]:
    """A run's config whose ``model`` and ``objective`` have these very types; the same class for the same types.

    Args:
        kind: The class.
        model: The preset, of whose family the config is.
        objective: Its settings; None leaves them as they are.
    """
    config = family_of(model).config
    parts: list[Any] = [("model", config, field(default_factory=partial(config, name=model)))]
    if objective is not None:
        parts.append(("objective", objective, field(default_factory=objective)))
    names = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return make_dataclass(kind.__name__, parts, bases=(kind,), frozen=True, namespace=names)


class _Parser(ConfigParser):
    """Errors in a line or two, without the page of usage, and with the key that was probably meant."""

    def take_defaults(self, of_init: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Makes the settings of ``init`` the defaults, and says which of them count and are not the usual ones."""
        known = {action.dest for action in self._actions}
        defaults = {key: value for key, value in of_init.items() if key in known}
        own = {
            key for key, value in defaults.items() if key == "model.name" or value != self.get_default(key)
        }
        taken = [f"{key}={defaults[key]}" for key in defaults if key in own and key not in given]
        self.set_defaults(defaults)
        if taken and os.environ.get("RANK", "0") == "0":
            print(f"{self.prog}: note: from init {given['init']}: {' '.join(taken)}", file=sys.stderr)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        grouped = re.sub(
            r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"Option '\1.\2' unknown", message
        )
        words = re.findall(r"--([\w.]+)|[Oo]ption '([\w.]+)'", grouped)
        known = [action.dest for action in self._actions]
        for word in ("".join(match) for match in words):
            if word in _RENAMED:
                message += f"\n  {word} has another name now: write {_RENAMED[word]}"
                continue
            near = difflib.get_close_matches(word, known, n=2) if word not in known else []
            message += f"\n  did you mean {' or '.join(near)}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message}\n  {self.prog} --help lists the keys\n")


def save_config(run: Path, text: str) -> None:
    """Writes the resolved config into the run's folder."""
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / "config.yaml", text)
