"""What may differ between a run and the checkpoint that it is resumed from, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from datasets.shards.names import is_pipe, public
from engine.checkpoints.folder import Checkpoint, CheckpointError
from engine.settings import flatten
from strict_yaml import load_yaml

#: What the checkpoint's numbers mean depends on these; sections end with a dot.
_FIXED = ("seed", "model.", "objective.kind")
#: Within them, what may change: masks are new in every step.
_FREE = ("model.mask.",)


def changed_settings(checkpoint: Checkpoint, config_yaml: str) -> dict[str, tuple[object, object]]:
    """The settings in which a run differs from its checkpoint: before and now, by key."""
    before, now = (flatten(load_yaml(text)) for text in (checkpoint.config_yaml, config_yaml))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return {key: (before.get(key), now.get(key)) for key in keys}


def check_settings(checkpoint: Checkpoint, config_yaml: str) -> list[str]:
    """The settings that were changed and are applied, as ``key: before → now``.

    Raises:
        CheckpointError: One was changed that may not be.
    """
    before = flatten(load_yaml(checkpoint.config_yaml))
    changes = changed_settings(checkpoint, config_yaml)
    # A key that the checkpoint's version did not have has its default now, which is what was done then.
    fixed = [key for key in changes if key in before and key.startswith(_FIXED) and not key.startswith(_FREE)]
    if fixed:
        raise CheckpointError(
            f"{checkpoint.path} was trained with other settings, which can't be changed when resuming: "
            f"{_listed(changes, fixed)}. Set them back to resume, or start a new output_dir with init pointing at this "
            "checkpoint"
        )
    return [_listed(changes, [key]) for key in changes]


@contextmanager
def naming_changes(checkpoint: Checkpoint, config_yaml: str) -> Iterator[None]:
    """Adds to a `CheckpointError` from within the block which of the model's settings were changed."""
    try:
        yield
    except CheckpointError as error:
        changes = changed_settings(checkpoint, config_yaml)
        keys = [key for key in changes if key.startswith("model.")]
        raise CheckpointError(
            f"{error}. Changed since: {_listed(changes, keys)}" if keys else str(error)
        ) from error


def check_data(checkpoint: Checkpoint, fingerprint: str, accepted: bool) -> str | None:
    """What is to be said of a training set that is another one than the checkpoint was trained on; None for the same.

    Args:
        checkpoint: What is resumed from.
        fingerprint: Of the set or sets now; empty where nobody knows.
        accepted: ``train.accept_changed_data``.

    Raises:
        CheckpointError: It is another one, and not accepted.
    """
    before = checkpoint.state.data
    if not before or not fingerprint or before == fingerprint:
        return None
    if not accepted:
        raise CheckpointError(
            f"data.train holds other clips or classes than {checkpoint.path} was trained on (fingerprint "
            f"{before[:12]}, now {fingerprint[:12]}): bring the set back, choose another output_dir, or go on with the "
            "new one by train.accept_changed_data=true"
        )
    return f"the training set has changed since that checkpoint ({before[:12]} → {fingerprint[:12]}), as accepted"


def check_groups(checkpoint: Checkpoint, now: dict[str, list[str]], config_yaml: str) -> None:
    """Raises `CheckpointError` unless the optimizer's groups hold the parameters that the checkpoint's held."""
    before = checkpoint.state.groups
    if not before or before == now:
        return
    different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    changes = changed_settings(checkpoint, config_yaml)
    keys = [key for key in changes if key.startswith(("objective.", "optimizer.", "model."))]
    raise CheckpointError(
        f"{checkpoint.path} was trained with other groups of parameters ({', '.join(different[:4])}"
        f"{', ...' if len(different) > 4 else ''}), and Adam's state goes by them. Changed since: "
        f"{_listed(changes, keys) or 'nothing in the config'}. Set it back, or start a new output_dir with init "
        "pointing at this checkpoint"
    )


def _listed(changes: Mapping[str, tuple[object, object]], keys: list[str]) -> str:
    return "; ".join(f"{key}: {_shown(changes[key][0])} → {_shown(changes[key][1])}" for key in keys)


def _shown(value: object) -> object:
    """A setting without what is secret in the locations that it names."""
    if isinstance(value, str):
        return public(value) if "://" in value or is_pipe(value) else value
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    return value
