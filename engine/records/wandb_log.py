"""Weights & Biases beside TensorBoard: the same scalars and pictures, and the run's config, under one id."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from atomic import write_atomically
from strict_yaml import load_yaml

_ID = "wandb_id"
#: Room for the rows of one attempt in W&B's own count.
_ROWS = 1_000_000


@dataclass(frozen=True)
class LogConfig:
    """Where numbers and pictures of a run go beside its own folder.

    Attributes:
        wandb: ``offline`` keeps them in ``RUN/wandb``, for ``wandb sync``; ``online`` sends them to Weights & Biases as
            they come, with the config as typed; null does neither.
        wandb_project: The project there.
    """

    wandb: Literal["offline", "online"] | None = None
    wandb_project: str = "earsight"

    def __post_init__(self) -> None:
        if self.wandb is not None and not _is_installed():
            raise ValueError(
                "log.wandb needs the package wandb: pip install -e '.[wandb]', or log.wandb=null"
            )


def _is_installed() -> bool:
    """Whether it is; a folder of that name, as its runs leave behind, is no package."""
    spec = find_spec("wandb")
    return spec is not None and spec.origin is not None


class WandbLog:
    """A run at Weights & Biases. A run that is resumed goes on under its id, which ``RUN/wandb_id`` keeps.

    Args:
        run: The run's folder.
        config: Where to.
        config_yaml: The run's config.
    """

    def __init__(self, run: Path, config: LogConfig, config_yaml: str) -> None:
        import wandb  # slow, and only those who want it have it

        self._wandb = wandb
        path = run / _ID
        if not path.is_file():
            write_atomically(path, secrets.token_hex(8) + "\n")
        # W&B's own count of rows may only rise, and offline it would begin at 0 in every attempt.
        self._row = _ROWS * len(list(run.glob("wandb/*run-*")))
        # Nothing but what is logged: no console, code, machine or environment.
        settings = wandb.Settings(
            console="off", quiet=True, silent=True, save_code=False, disable_code=True, disable_git=True,
            disable_job_creation=True, symlink=False, allow_media_symlink=False, x_disable_meta=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
        )  # fmt: skip
        self._run = wandb.init(
            project=config.wandb_project,
            id=path.read_text(encoding="utf-8").strip(),
            name=run.resolve().name,
            resume="allow",
            mode=config.wandb,
            dir=str(run),
            config=load_yaml(config_yaml),
            settings=settings,
        )
        # Curves are drawn over our steps: those that were lost are taken again.
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Named scalars of a step."""
        self._log({"step": step, **values})

    def image(self, name: str, picture: torch.Tensor, step: int) -> None:
        """A (3, H, W) uint8 picture."""
        shown: Any = self._wandb.Image(picture.permute(1, 2, 0).numpy())
        self._log({"step": step, name: shown})

    def _log(self, values: dict[str, Any]) -> None:
        self._run.log(values, step=self._row)
        self._row += 1

    def close(self) -> None:
        """Writes or sends what is left."""
        self._run.finish()
