"""The settings that fine-tuning takes from the weights it starts from: the model's, and those of its spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.settings import flatten
from home_paths import expand_home
from models.pretrained import read_description
from models.weights.errors import WeightsError
from strict_yaml import load_yaml_file

#: Fields of the spectrogram that the model decides.
_LINKED = ("fbank.target_length", "fbank.num_mel_bins")


def settings_of_init(given: Mapping[str, Any], output_dir: str) -> dict[str, Any]:
    """``model.*`` and ``fbank.*`` of the weights that ``init`` names, by dotted key.

    Args:
        given: What the command line and its files say. A ``model.name`` there that is not that of the weights is
            another model, to which their settings do not apply.
        output_dir: The run's folder where none is given. A run that has begun no longer needs ``init``, so where that
            can't be read any more, its own ``config.yaml`` tells the same.

    Returns:
        Nothing where there is no ``init``, or where it tells nothing of a model, as an image model's weights.

    Raises:
        ValueError: ``init`` can't be read, so that nothing tells what model it holds.
    """
    init = given.get("init")
    if not isinstance(init, str):
        return {}
    try:
        found = read_description(expand_home(init))
    except WeightsError as error:
        run = Path(expand_home(str(given.get("output_dir", output_dir))))
        settings = _of_run(run / "config.yaml", init)
        if not settings and "model.name" not in given:
            raise ValueError(
                f"init: {error}. model.* and fbank.* are taken from there, unless model.name is given"
            ) from error
    else:
        if found is None:
            return {}
        settings = flatten(
            {"model": asdict(found.model), "fbank": asdict(found.fbank) if found.fbank else {}}
        )
    if given.get("model.name", settings.get("model.name")) != settings.get("model.name"):
        settings = {key: value for key, value in settings.items() if not key.startswith("model.")}
    return {key: value for key, value in settings.items() if key not in _LINKED}


def _of_run(config: Path, init: str) -> dict[str, Any]:
    """The same of a run that was begun with ``init``."""
    try:
        values = load_yaml_file(config)
    except (OSError, ValueError):
        return {}
    if not isinstance(values, Mapping) or values.get("init") != expand_home(init):
        return {}
    return flatten({name: values.get(name) or {} for name in ("model", "fbank")})
